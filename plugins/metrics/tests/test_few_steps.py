"""The curve of quality against network evaluations: numbers, samplers, files, refusals."""

import pytest
import torch
from advdiff_metrics.few_steps import FewSteps, distinct, table
from attrs import evolve

from advdiff_core import Build, DataInfo, RecipeError, setting, settings
from advdiff_core.interfaces.backbone import BackboneOutput
from advdiff_core.samplers import DDIM, DDPM, Heun
from advdiff_core.settings import Spec
from advdiff_core.testing import bench
from advdiff_core.testing.evaluation import BenchEvaluation

POINTS = DataInfo(shape=(3,), count=40)


class _Half(torch.nn.Module):
    """Takes half of its input for noise."""

    def forward(self, x, *_, **__):
        """The prediction."""
        return BackboneOutput(x / 2, {})


class _Spread:
    """A judge: the samples' deviation, and their number."""

    @settings
    class Settings:
        """Keys."""

        needs: bool = setting(True, help="look at samples")

    def __init__(self, settings, build):
        self.needs_samples = settings.needs

    def protocol(self):
        """What it is."""
        return {"what": "deviation"}

    def compute(self, evaluation):
        """Two numbers."""
        (evaluation.folder / "seen").write_text(str(len(evaluation.samples)))
        return {"spread": float(evaluation.samples.std()), "count": float(len(evaluation.samples))}


class _Wrapper:
    """The settings of a sampler around another."""

    @settings
    class Settings:
        """Keys."""

        sampler: Spec = setting(kind="sampler", help="the other")


def spec_of(kind, component, use="", **keys):
    """A nested component."""
    use = use or component.__name__.lower()
    return Spec(kind=kind, use=use, settings=component.Settings(**keys), component=component)


def few(**keys):
    """The curve of the judge."""
    judge = spec_of("metric", _Spread, "judge", needs=keys.pop("needs", True))
    told = Build(path="evaluate.metrics[0]", data=POINTS, schedule=bench.schedule("vp-linear"))
    build = evolve(told, make=lambda spec: spec.component(spec.settings, told))
    return FewSteps(FewSteps.Settings(metric=judge, **keys), build)


@pytest.fixture
def world(tmp_path):
    """Six samples of a network that takes half of its input for noise."""
    samples = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    told = bench.World(name="points", data=POINTS)
    return BenchEvaluation(told, _Half(), samples=samples, data=samples, folder=tmp_path)


def test_few_steps_gives_the_other_metrics_number_at_each(world):
    """The first number by default, of samples made in so many steps; a table over evaluations."""
    metric = few(steps=(2, 8))
    found = metric.compute(world)
    wanted = {
        f"few_steps_spread_{n}": float(world.generate(world.sampler(n)).x0.std()) for n in (2, 8)
    }
    assert found == pytest.approx(wanted)
    assert (world.folder / "few-steps-judge.csv").read_text().splitlines() == [
        "curve,NFE,value", *(f"spread,{n}.0,{found[f'few_steps_spread_{n}']}" for n in (2, 8)),
    ]  # fmt: skip
    assert (world.folder / "few-steps-judge" / "2" / "seen").read_text() == "6"
    assert metric.protocol()["metric"] == {"use": "judge", "what": "deviation"}
    assert metric.protocol()["sampler of the curve"] == "the run's"


def test_few_steps_takes_a_sampler_and_numbers_of_choice(world):
    """Heun spends 2n - 1 evaluations; two seeds were asked for."""
    metric = few(steps=(3,), sampler=spec_of("sampler", Heun), numbers=("count",), num=2)
    assert metric.compute(world) == {"few_steps_count_3": 2.0}
    assert ",5.0," in (world.folder / "few-steps-judge.csv").read_text()
    assert metric.protocol()["sampler of the curve"] == "heun"


def test_several_samplers_have_a_curve_and_a_column_each(world):
    """Numbers are those of each sampler alone, named by it; the table is over evaluations."""
    samplers = (spec_of("sampler", DDIM), spec_of("sampler", Heun), spec_of("sampler", DDPM))
    metric = few(steps=(2, 3), samplers=samplers)
    found = metric.compute(world)
    alone = [few(steps=(2, 3), sampler=one).compute(world) for one in samplers]
    for name, numbers in zip(("ddim", "heun", "ddpm"), alone, strict=True):
        for steps in (2, 3):
            wanted = numbers[f"few_steps_spread_{steps}"]
            assert found[f"few_steps_spread_{name}_{steps}"] == wanted
    assert len(found) == 6
    told = metric.protocol()["samplers of the curves"]
    assert {name: one["use"] for name, one in told.items()} == {n: n for n in told}
    assert told["ddim"] == {
        "use": "ddim", "grid": None, "rho": 7.0, "shift": 1.0, "clip_x0": False, "eta": 0.0,
        "keep_eps": False,
    }  # fmt: skip


def test_the_table_has_a_row_for_each_number_of_evaluations(world):
    """Where a sampler has no point, its cell is empty; labels of choice head the columns."""
    samplers = (spec_of("sampler", DDIM), spec_of("sampler", Heun))
    metric = few(steps=(2, 3), samplers=samplers, labels=("first", "2nd order"))
    found = metric.compute(world)
    head, rule, *rows = (world.folder / "few-steps-judge.md").read_text().splitlines()
    assert head == "| NFE | spread, first | spread, 2nd-order |"
    assert rule == "| ---: | ---: | ---: |"
    cells = [[part.strip() for part in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in cells] == ["2", "3", "5"]
    assert cells[2][1] == ""
    assert cells[0][2] == ""
    assert float(cells[1][2]) == pytest.approx(found["few_steps_spread_2nd-order_2"], rel=1e-3)
    assert (world.folder / "few-steps-judge" / "first-3" / "seen").exists()


def test_samplers_of_one_name_are_told_apart():
    """By a number; a wrapped sampler has the wrapper's name, too; nothing is lost to a clash."""
    inner = spec_of("sampler", DDPM)
    samplers = (inner, spec_of("sampler", _Wrapper, "wrapped", sampler=inner), inner)
    told = few(samplers=samplers).protocol()["samplers of the curves"]
    assert list(told) == ["ddpm", "wrapped-ddpm", "ddpm-2"]
    assert told["wrapped-ddpm"] == {"use": "wrapped", "sampler": told["ddpm"]}
    assert told["ddpm"] == told["ddpm-2"]
    assert distinct(["a", "a", "a-2", "a+b"]) == ["a", "a-2", "a-2-2", "a-b"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"steps": ()}, r"steps: found \[\], wanted one or more, each once"),
        ({"steps": (5, 5)}, r"steps: found \[5, 5\], wanted one or more, each once"),
        ({"labels": ("a",)}, r"labels: found \['a'\], wanted one for each of 0 samplers"),
        ({"labels": ("a b", "a-b"), "twice": 2}, "wanted one for each of 2 samplers, each once"),
        ({"sampler": "ddim", "twice": 1}, "samplers: found beside sampler, wanted one of the two"),
    ],
)
def test_few_steps_refuses_what_has_no_curve(keys, words):
    """No steps, steps or labels twice, labels without samplers, two keys for samplers."""
    keys, spec = dict(keys), spec_of("sampler", DDIM)
    keys["samplers"] = (spec,) * keys.pop("twice", 0)
    if "sampler" in keys:
        keys["sampler"] = spec
    with pytest.raises(ValueError, match=words):
        few(**keys)


def test_few_steps_refuses_a_metric_without_curve(world):
    """A judge of networks alone, an unknown number."""
    with pytest.raises(RecipeError, match="'judge' looks at no samples"):
        few(needs=False)
    with pytest.raises(RecipeError, match="there is no number 'sharp'; there are spread, count"):
        few(numbers=("sharp",)).compute(world)


def test_a_table_has_a_column_for_each_curve():
    """Numbers have four digits."""
    found = table("NFE", {"a": [(5.0, 1.23456)], "b": [(5.0, 2.0), (10.0, 1e-9)]})
    assert found == (
        "| NFE | a | b |\n| ---: | ---: | ---: |\n| 5 | 1.235 | 2 |\n| 10 |  | 1e-09 |\n"
    )
