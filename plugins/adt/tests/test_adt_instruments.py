"""Instruments where their answers are known: constant and linear networks, plain judges."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from advdiff_adt.metrics_discriminator import DiscriminatorAccuracy, DiscriminatorHacking, auc
from advdiff_adt.metrics_gradients import RolloutGradients
from advdiff_adt.rules import RULES
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from advdiff_core import BackboneOutput, Build, DataInfo, Denoise, RecipeError, Sampler
from advdiff_core.interfaces.component import ModelInfo
from advdiff_core.samplers import DDIM
from advdiff_core.schedules import VPLinear
from advdiff_core.settings import Spec, settings
from advdiff_core.testing.bench import World
from advdiff_core.testing.evaluation import BenchEvaluation

SCHEDULE = VPLinear(VPLinear.Settings(), Build(path="schedule"))
COUNT, DIMS, STEPS = 12, 3, 5
INFO = DataInfo(shape=(DIMS,), count=COUNT)
DENOISER = ModelInfo(kind="backbone", frozen=True, parametrization="eps")
MODELS = {
    "student": DENOISER, "teacher": DENOISER,
    "classifier": ModelInfo(kind="backbone", frozen=True),
    "discriminator": ModelInfo(kind="discriminator", frozen=True),
}  # fmt: skip


class Linear(nn.Module):
    """A network that predicts `eps = c + W x`."""

    def __init__(self, shift: float = 0.3, slope: float = 0.0) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((DIMS,), shift))
        matrix = slope * torch.tensor([[1.0, 0.3, 0], [0, -0.5, 0], [0.2, 0, 1]])
        # A constant network has its constant alone to learn.
        self.register_buffer("slope", matrix)
        if slope:
            del self.slope
            self.slope = nn.Parameter(matrix)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Any = None, **asked: Any) -> Any:
        """Run it on `x` [B, D]."""
        del c_noise, labels, asked
        return BackboneOutput(self.shift + x @ self.slope.T, {})


class Critic(nn.Module):
    """A judge of a formula."""

    def __init__(self, score: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.score = score

    def forward(self, x: Tensor, *, reference: Tensor, labels: Any = None) -> Tensor:
        """Scores of `x` [B, D] beside `reference` [B, D]."""
        del labels
        return self.score(x, reference)


class Told(BenchEvaluation):
    """An evaluation of two networks, with a judge."""

    def __init__(
        self, folder: Path, net: nn.Module, score: Any = None, other: nn.Module | None = None
    ) -> None:
        data = torch.randn(COUNT, DIMS, generator=torch.Generator().manual_seed(1))
        critics = {"discriminator": Critic(score)} if score else {}
        world = World(name="points", data=INFO)
        super().__init__(world, net, samples=data, data=data, folder=folder, critics=critics)
        self.schedule: Any = SCHEDULE
        self._other = other

    def denoiser(self, role: str | None = None, labels: Any = None, **how: Any) -> Denoise:
        """The second network for the teacher."""
        if role != "teacher":
            return super().denoiser(role, labels, **how)
        twin = Told(self.folder, self._other or self._module)
        return BenchEvaluation.denoiser(twin, role, labels, **how)

    def sampler(self, steps: int | None = None) -> Sampler:
        """DDIM."""
        made: Any = DDIM.Settings
        told = Build(path="sample", data=self.info, schedule=self.schedule)
        return DDIM(made(steps=steps or STEPS), told)


@settings
class NoKeys:
    """Nothing to set."""


class Spread:
    """A distance: mean square of the samples."""

    needs_samples = True
    Settings = NoKeys

    def __init__(self, made: Any = None, build: Any = None) -> None:
        del made, build

    def protocol(self) -> Mapping[str, object]:
        """What it is."""
        return {"what": "mean square"}

    def compute(self, evaluation: Any) -> Mapping[str, float]:
        """Of the samples."""
        return {"spread": float(evaluation.samples.double().square().mean()), "one": 1.0}


def build(**keys: Any) -> Build:
    """What an instrument is told."""
    made = {"path": "evaluate.metrics[0]", "data": INFO, "schedule": SCHEDULE, "models": MODELS}

    def nested(spec: Spec) -> Any:
        return spec.component(spec.settings, Build(path="inner", data=INFO, schedule=SCHEDULE))

    return Build(**{**made, "make": nested, **keys})


def metric(cls: Any, told: Build | None = None, **keys: Any) -> Any:
    """An instrument with these keys."""
    return cls(cls.Settings(**keys), told or build())


def coefficients(steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """`a` and `b` [n] of DDIM's steps, float64."""
    made: Any = DDIM.Settings
    sampler = DDIM(made(steps=steps), Build(path="sample", data=INFO, schedule=SCHEDULE))
    grid = sampler.grid()
    return sampler.linear_step(grid[:-1], grid[1:])


def test_multipliers_and_weights_of_a_constant_network_are_the_closed_form(tmp_path: Path) -> None:
    """1, alpha_0 / alpha_T and 0 at the start; b_i, and b_i times the steps after it, by step."""
    evaluation = Told(tmp_path, Linear())
    found = metric(RolloutGradients, rules=RULES, num=COUNT).compute(evaluation)
    a, b = coefficients()
    after = torch.cat([a.flip(0).cumprod(0).flip(0)[1:], torch.ones(1).double()])
    whole = float(a.prod())
    for rule, wanted in {"adt": 1.0, "drtune": whole, "full": whole, "none": 0.0}.items():
        assert found[f"rollout_multiplier_{rule}"] == pytest.approx(wanted, rel=1e-5)
    rows = [line.split(",") for line in (tmp_path / "rollout-weights.csv").read_text().split()[1:]]
    norms = {rule: [float(value) for name, _, value in rows if name == rule] for rule in RULES}
    for rule, weights in {"adt": b.abs(), "drtune": (b * after).abs()}.items():
        shares = torch.tensor(norms[rule]) / sum(norms[rule])
        torch.testing.assert_close(shares.double(), weights / weights.sum(), rtol=1e-4, atol=0)
        early = float(weights[0] / weights.sum())
        assert found[f"rollout_early_{rule}"] == pytest.approx(early, rel=1e-4)
    # All steps pull in one direction, so that norms add up.
    assert found["rollout_weights_adt"] == pytest.approx(sum(norms["adt"]), rel=1e-4)
    assert [norm > 0 for norm in norms["none"]] == [False] * (STEPS - 1) + [True]
    assert [norm > 0 for norm in norms["last-k"]] == [False] * (STEPS - 3) + [True] * 3
    assert found["rollout_angle_drtune"] == pytest.approx(0.0, abs=1e-3)


def by_hand(evaluation: Told, *, full: bool) -> Tensor:
    """Gradient of the mean score towards all weights, by a loop of the formula in float64."""
    net = Linear(slope=0.4).double()
    sampler, a, b = evaluation.sampler(), *coefficients()
    maker = metric(RolloutGradients, num=COUNT, batch=COUNT)
    (begun,) = maker.paths.begin(evaluation, sampler)
    x = begun.x_t.double()
    for slope, factor in zip(a.tolist(), b.tolist(), strict=True):
        eps = net.shift + (x if full else x.detach()) @ net.slope.T
        moved = slope * x + factor * eps
        x = moved if full else (moved - factor * eps).detach() + (x - x.detach()) + factor * eps
    score = -(x - begun.x0.double()).square().sum(1) / 2
    found = torch.autograd.grad(score.mean(), list(net.parameters()))
    return torch.cat([one.flatten() for one in found])


def test_weights_and_angle_are_those_of_a_loop_by_hand(tmp_path: Path) -> None:
    """`full` and `adt` of a network that depends on its input; batches change nothing."""
    evaluation = Told(tmp_path, Linear(slope=0.4))
    full, adt = by_hand(evaluation, full=True), by_hand(evaluation, full=False)
    cosine = float(full @ adt / full.norm() / adt.norm())
    for batch in (COUNT, 5):
        found = metric(RolloutGradients, num=COUNT, batch=batch).compute(evaluation)
        assert found["rollout_weights_full"] == pytest.approx(float(full.norm()), rel=1e-4)
        assert found["rollout_weights_adt"] == pytest.approx(float(adt.norm()), rel=1e-4)
        angle = math.degrees(math.acos(cosine))
        assert found["rollout_angle_adt"] == pytest.approx(angle, abs=0.01)
        assert "rollout_angle_full" not in found


def test_a_judge_takes_the_place_of_the_distance(tmp_path: Path) -> None:
    """Its score decides the weights' gradient; the multiplier of a rule does not depend on it."""
    evaluation = Told(tmp_path, Linear(), lambda x, reference: 7 * x[:, :1] + 0 * reference)
    keys = {"rules": ("adt",), "num": COUNT}
    judged = metric(RolloutGradients, judge="discriminator", **keys).compute(evaluation)
    plain = metric(RolloutGradients, **keys).compute(evaluation)
    _, b = coefficients()
    assert judged["rollout_weights_adt"] == pytest.approx(7 * float(b.sum().abs()), rel=1e-4)
    assert judged["rollout_multiplier_adt"] == plain["rollout_multiplier_adt"] == 1.0
    assert judged["rollout_weights_adt"] != plain["rollout_weights_adt"]


@pytest.mark.parametrize(
    ("score", "accuracy", "area"),
    [
        (lambda x, r: 1 - 2 * (x != r).any(1).float(), 1.0, 1.0),
        (lambda x, r: -1 + 2 * (x != r).any(1).float(), 0.0, 0.0),
        (lambda x, r: torch.zeros(len(x), 4), 0.5, 0.5),
        (lambda x, r: 3 + 0 * (x + r), 0.5, 0.5),
    ],
)
def test_accuracy_of_a_judge_is_what_it_can_tell(
    tmp_path: Path, score: Any, accuracy: float, area: float
) -> None:
    """One that knows, one that errs always, and two that cannot tell."""
    evaluation = Told(tmp_path, Linear(), score)
    found = metric(DiscriminatorAccuracy, starts=(1.0, 0.2)).compute(evaluation)
    for end in ("", "_s1", "_s0.2"):
        assert found[f"discriminator_accuracy{end}"] == accuracy
        assert found[f"discriminator_auc{end}"] == area


def test_a_shorter_path_is_harder_to_tell_from_data(tmp_path: Path) -> None:
    """The judge scores by minus the distance to the clean sample, which the path's length makes."""
    evaluation = Told(tmp_path, Linear(), lambda x, r: 1 - (x - r).norm(dim=1))
    found = metric(DiscriminatorAccuracy, starts=(1.0, 0.2), threshold=-0.5).compute(evaluation)
    assert found["discriminator_accuracy_s0.2"] < found["discriminator_accuracy_s1"] == 1.0
    assert found["discriminator_real"] == 1.0
    assert found["discriminator_fake"] < 0


def test_the_choice_of_samples_is_their_own(tmp_path: Path) -> None:
    """Fewer of them are the same ones in any order of the data."""
    evaluation = Told(tmp_path, Linear(), lambda x, r: (x - r).norm(dim=1))
    maker = metric(DiscriminatorAccuracy, num=4, batch=3)
    first = maker.compute(evaluation)
    evaluation.clean = evaluation.clean.flip(0)
    assert maker.compute(evaluation) == pytest.approx(first, rel=1e-5)


REAL = st.lists(st.integers(-3, 3), min_size=1, max_size=9)


@given(real=REAL, fake=REAL)
def test_auc_is_the_share_of_pairs_in_order(real: list[int], fake: list[int]) -> None:
    """Counted pair by pair; ties are half."""
    pairs = [(a > b) + (a == b) / 2 for a in real for b in fake]
    found = auc(torch.tensor(real).double(), torch.tensor(fake).double())
    assert found == pytest.approx(sum(pairs) / len(pairs))


def spread(**keys: Any) -> Spec:
    """The distance as a recipe's table."""
    return Spec(kind="metric", use="spread", settings=NoKeys(**keys), component=Spread)


#: A judge that likes large samples, one that likes small ones.
LARGE = lambda x, r: x.square().mean(1)  # noqa: E731
SMALL = lambda x, r: -x.square().mean(1)  # noqa: E731


@pytest.mark.parametrize(
    ("score", "keys", "alarm"),
    [
        (LARGE, {}, 1.0),
        (SMALL, {}, 0.0),
        (LARGE, {"higher_is_better": True}, 0.0),
        (LARGE, {"number": "one"}, 0.0),
        (LARGE, {"score_margin": 1e6}, 0.0),
        (LARGE, {"distance_margin": 1e6}, 0.0),
    ],
)
def test_the_alarm_rings_if_the_score_rises_and_the_distance_worsens(
    tmp_path: Path, score: Any, keys: dict[str, Any], alarm: float
) -> None:
    """Samples of the tuned network are larger; both sides come from the same noise."""
    evaluation = Told(tmp_path, Linear(0.9), score, Linear(0.1))
    maker = metric(DiscriminatorHacking, before="teacher", metric=spread(), **keys)
    found = maker.compute(evaluation)
    assert found["hacking_alarm"] == alarm
    rise = found["hacking_score_rise"]
    assert (rise > 0) == (score is LARGE)
    if not keys:
        # Judge and distance measure the same.
        assert abs(rise) == pytest.approx(found["hacking_distance_rise"], rel=1e-5)
    assert not (tmp_path / "discriminator-hacking").exists()
    assert maker.protocol()["distance"] == {"use": "spread", "what": "mean square"}


def test_a_network_that_did_not_change_rings_no_alarm(tmp_path: Path) -> None:
    """Both differences are exactly 0."""
    evaluation = Told(tmp_path, Linear(), LARGE, Linear())
    found = metric(DiscriminatorHacking, before="teacher", metric=spread()).compute(evaluation)
    assert set(found.values()) == {0.0}


def fault_of(make: Callable[[], object]) -> Any:
    """The one fault of a recipe that is refused."""
    with pytest.raises(RecipeError) as caught:
        make()
    (fault,) = caught.value.faults
    assert (fault.code, bool(fault.fix)) == ("R10", True)
    return fault


@pytest.mark.parametrize(
    ("cls", "keys", "key", "words"),
    [
        (DiscriminatorAccuracy, {"judge": "critic"}, "judge", "'critic' is no role of this recipe"),
        (DiscriminatorAccuracy, {"judge": "student"}, "judge", "is a denoiser, wanted a discrimin"),
        (RolloutGradients, {"judge": "classifier"}, "judge", "is a network without parametrizat"),
        (
            RolloutGradients,
            {"role": "discriminator"},
            "role",
            "is a discriminator, wanted a denoiser",
        ),
        (RolloutGradients, {"decoder": "student"}, "decoder", "is a denoiser, wanted a network wi"),
        (
            DiscriminatorHacking,
            {"before": "discriminator", "metric": spread()},
            "before",
            "discriminator",
        ),
    ],
)
def test_roles_of_another_kind_are_refused(cls: Any, keys: Any, key: str, words: str) -> None:
    """The message says what the role is and what was wanted."""
    fault = fault_of(lambda: metric(cls, **keys))
    assert fault.key == f"evaluate.metrics[0].{key}"
    assert words in fault.message


def test_recipes_without_a_schedule_or_linear_steps_are_refused(tmp_path: Path) -> None:
    """There is no path; clipping bends its steps."""
    fault = fault_of(lambda: metric(RolloutGradients, build(schedule=None)))
    assert "need a noise schedule, the recipe has none" in fault.message
    made: Any = DDIM.Settings
    data = DataInfo(shape=(DIMS,), count=COUNT, domain=None)
    bent = Spec(kind="sampler", use="bent", settings=made(steps=2), component=_Bent)
    maker = metric(RolloutGradients, build(data=data), sampler=bent)
    fault = fault_of(lambda: maker.compute(Told(tmp_path, Linear())))
    assert "'adt' of a sampler whose steps are not linear" in fault.message
    assert fault.fix == "set sampler.clip_x0 = false, or leave out 'adt' and 'drtune'"
    full = metric(RolloutGradients, sampler=bent, rules=("full",))
    assert full.compute(Told(tmp_path, Linear()))["rollout_multiplier_full"] > 0
    assert (tmp_path / "rollout-weights-bent.csv").exists()


class _Bent(DDIM):
    """DDIM that says its steps are not linear."""

    linear = False


@pytest.mark.parametrize(
    ("cls", "keys", "words"),
    [
        (RolloutGradients, {"rules": ()}, r"rules: found \[\], wanted one or more, each once"),
        (RolloutGradients, {"rules": ("adt", "adt")}, r"rules: found \['adt', 'adt'\], wanted one"),
        (DiscriminatorAccuracy, {"starts": ()}, r"starts: found \[\], wanted one or more, each"),
        (DiscriminatorAccuracy, {"starts": (1.0, 1.0)}, r"starts: found \[1.0, 1.0\], wanted one"),
    ],
)
def test_settings_that_measure_nothing_are_refused(cls: Any, keys: Any, words: str) -> None:
    """Told by the settings."""
    with pytest.raises(ValueError, match=words):
        metric(cls, **keys)
