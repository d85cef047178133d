"""Free adversarial training in a run: what equals plain training, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from advdiff_atdiff.perturbations import PGD, Free
from torch import Tensor

from advdiff_core import Budget, Build, NoiseSchedule
from advdiff_core.cli import main
from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.checkpoint import load, newest_valid
from advdiff_core.engine.distributed import World
from advdiff_core.engine.planning import plan_experiment
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.trainer import Trainer
from advdiff_core.errors import RecipeError
from advdiff_core.recipe import loads_recipe
from advdiff_core.types import Cost

PLAIN = """
advdiff = 1
[run]
name = "small"
images = 64
batch = 16
checkpoint_every = 64
precision = "fp32"
[data]
use = "two-moons"
count = 90
[schedule]
use = "vp-cosine"
[models.student]
use = "mlp"
width = 16
blocks = 1
dropout = 0.2
[terms.denoise]
use = "denoise"
view = "clean"
[players.student]
terms = ["denoise"]
optimizer = { use = "adamw", lr = 1e-2 }
ema = [0.9]
clip = 1.0
[sample]
use = "ddim"
steps = 2
images = 4
[evaluate]
num = 8
metrics = []
"""


def free(use: str = "free", passes: int = 3, **keys: Any) -> str:
    """The recipe with a moved view."""
    table = ", ".join(f"{key} = {_toml(value)}" for key, value in {"use": use, **keys}.items())
    player = f'[players.student]\npasses = {passes}\nupdate = "pass"'
    text = PLAIN.replace('view = "clean"', 'view = "adv"').replace("[players.student]", player)
    return f'{text}\n[views.adv]\nfrom = "clean"\nperturb = {{ {table} }}\n'


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def state_of(text: str, folder: Path) -> dict[str, Any]:
    """Models, averages and optimizers at the end of `advdiff train`."""
    folder.mkdir()
    recipe = folder / "recipe.toml"
    recipe.write_text(text)
    assert main(["train", str(recipe), "--out", str(folder / "runs")]) == 0
    (run,) = (folder / "runs").iterdir()
    path, _ = newest_valid(run / "checkpoints")
    shared = load(path).shared
    return {key: shared[key] for key in ("models", "ema", "optimizers")}


def same(one: Any, other: Any) -> bool:
    """Whether two trees of tensors are equal bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


def test_one_pass_is_plain_training_bit_for_bit(tmp_path: Path) -> None:
    """K = 1, through the command line: weights, averages and the optimizer's state."""
    plain = state_of(PLAIN, tmp_path / "plain")
    assert same(state_of(free(passes=1), tmp_path / "free"), plain)
    assert not same(state_of(free(passes=2), tmp_path / "two"), plain)


def trainer_of(text: str) -> Trainer:
    """A trainer before its first step."""
    made = assemble(loads_recipe(text, Path("small.toml")))
    return Trainer(made, world=World(), ticks=None, stop=StopFlag())


def test_optimizer_and_averages_step_at_every_pass() -> None:
    """K updates a batch, of weights and averages; losses of every pass are reported."""
    trainer = trainer_of(free(passes=3))
    for _ in range(2):
        trainer.train_step()
    player = trainer.experiment.players[0]
    assert player.updates == 6
    assert player.emas["student"][0].updates == 6
    assert trainer.nimg == 32
    assert trainer.scene.roles["student"].cost == Cost(6, 0, 6)


def test_a_law_of_times_sees_the_losses_of_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """K entries per sample of a batch, adversarial ones included, at the same times (FOUND)."""
    density = 'density = { sampler = { use = "consistency-grid" } }'
    text = free(passes=3).replace('use = "vp-cosine"', f'use = "edm"\n{density}')
    trainer = trainer_of(text)
    times = trainer.scene.times
    assert times is not None
    seen: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(times, "observe", lambda t, losses: seen.append((t, losses)))
    trainer.train_step()
    assert len(seen) == 3
    assert all(torch.equal(t, seen[0][0]) for t, _ in seen)
    assert not torch.equal(seen[0][1], seen[1][1])
    assert not torch.equal(seen[1][1], seen[2][1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_has_its_whole_length_in_any_precision(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delta stays in float32 and moves by alpha, where the released code all but stood still."""
    update, seen = Free.update, []

    def watched(self: Free, delta: Tensor, gradient: Tensor, budget: Budget) -> Tensor:
        seen.append(update(self, delta, gradient, budget) - delta)
        return delta + seen[-1]

    monkeypatch.setattr(Free, "update", watched)
    text = free(passes=2, alpha=0.07).replace('"fp32"', f'"{precision}"')
    trainer_of(text).train_step()
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[0].norm(dim=1), torch.full((16,), 0.07), rtol=1e-5, atol=0)


@pytest.mark.parametrize("use", ["free", "pgd"])
def test_radius_zero_is_plain_training(use: str, tmp_path: Path) -> None:
    """Whatever the search finds, as many updates on the same batches give the same weights."""
    plain = free(use, rho=0.0).replace('view = "adv"', 'view = "clean"')
    assert same(state_of(free(use, rho=0.0), tmp_path / "a"), state_of(plain, tmp_path / "b"))


def refusal(text: str) -> str:
    """The one line that a recipe is refused with."""
    with pytest.raises(RecipeError) as caught:
        trainer_of(text)
    (fault,) = caught.value.faults
    line = f"{fault.key}: {fault.message} - {fault.fix}"
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (free(passes=0), ("players.student.passes", "0 must be at least 1")),
        (free(alpha=-0.1), ("views.adv.perturb.alpha", "-0.1 must be at least 0")),
        (free(rho=-0.1), ("views.adv.perturb.rho", "-0.1 must be at least 0")),
        (free(alpha="much"), ("views.adv.perturb.alpha", "number")),
        (free("pgd", steps=0), ("views.adv.perturb.steps", "0 must be at least 1")),
        (free(norm="l3"), ("views.adv.perturb.norm", "l3")),
        (free(norm="l1", top=3), ("views.adv.perturb.top", "3 entries of samples of shape [2]")),
        (free(top=3), ("views.adv.perturb.top", "norm")),
        (free(target="fixed", ascent="frozen"), ("views.adv.perturb.ascent", "target")),
        (free(radius="neighbours", steps_apart=1), ("views.adv.perturb.steps_apart", "at least 2")),
    ],
)
def test_a_key_without_meaning_is_refused(text: str, words: tuple[str, ...]) -> None:
    """In one line that names the key and what was found."""
    line = refusal(text)
    assert all(word in line for word in words), line


class Silent(NoiseSchedule):
    """Without noise at its first time."""

    num_steps = 10
    t_min, t_max = 0.0, 1.0

    def alpha(self, t: Tensor) -> Tensor:
        """Falls."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """Zero at zero."""
        return t


@pytest.mark.parametrize("use", [Free, PGD])
def test_a_time_without_noise_is_refused(use: Any) -> None:
    """Before the run, naming the time: delta / sigma has no value there. A fixed target may."""
    build = Build(path="views.adv.perturb", schedule=Silent(Silent.Settings(), Build()))
    with pytest.raises(RecipeError, match="sigma is 0 at t = 0, a training time") as caught:
        use(use.Settings(), build)
    assert caught.value.faults[0].key == "schedule"
    use(use.Settings(target="fixed"), build)


CLASSIFIER = """
advdiff = 1
[run]
images = 32
batch = 16
[data]
use = "two-moons"
count = 64
[models.student]
use = "mlp"
parametrization = "none"
width = 8
blocks = 1
[views.adv]
from = "image"
perturb = { PERTURB }
[terms.loss]
use = "cross-entropy"
view = "adv"
[players.student]
terms = ["loss"]
passes = 3
update = "pass"
optimizer = { use = "sgd", lr = 0.1 }
"""


@pytest.mark.parametrize("keys", ["", ', target = "fixed", radius = "neighbours"'])
@pytest.mark.parametrize("use", ["free", "pgd"])
def test_a_moved_target_and_a_radius_in_time_need_noise(use: str, keys: str) -> None:
    """A view of images has none."""
    line = refusal(CLASSIFIER.replace("PERTURB", f'use = "{use}"{keys}'))
    assert "'image' is a view of images, which have no noise level" in line


def test_a_classifier_is_trained_with_a_fixed_target() -> None:
    """Free adversarial training as it began (Shafahi et al., 2019), on a view of images."""
    text = CLASSIFIER.replace("PERTURB", 'use = "free", target = "fixed", alpha = 0.1')
    trainer = trainer_of(text)
    trainer.train_step()
    assert trainer.experiment.players[0].updates == 3
    pgd = 'use = "pgd", target = "fixed"'
    line = refusal(CLASSIFIER.replace("PERTURB", pgd))
    assert "'student' is no denoiser: it has no loss that could grow" in line
    term = f'{pgd}, term = {{ use = "cross-entropy" }}'
    trainer_of(CLASSIFIER.replace("PERTURB", term)).train_step()


def test_a_target_that_no_denoiser_sees_is_refused() -> None:
    """A critic on noised samples has no use for the noise that explains them."""
    text = CLASSIFIER.replace('"image"', '"clean"').replace("PERTURB", 'use = "free"')
    line = refusal(text)
    assert "views.adv.perturb.target" in line
    assert "only 'student' looks at this view, no denoiser" in line
    assert 'write target = "fixed"' in line
    fixed = text.replace('use = "free"', 'use = "free", target = "fixed"')
    trainer_of(fixed).train_step()


def test_one_pass_is_warned_of_and_a_mean_gradient_is_not() -> None:
    """`passes = 1` never moves; `update = "batch"` is FreeLB: delta moves, the weights once."""
    one = loads_recipe(free(passes=1), Path("small.toml"))
    assert any("starts at 0 and moves between passes" in note.message for note in one.warnings)
    text = free(passes=3).replace('update = "pass"', 'update = "batch"')
    assert not loads_recipe(text, Path("small.toml")).warnings
    trainer = trainer_of(text)
    trainer.train_step()
    assert trainer.experiment.players[0].updates == 1
    assert trainer.scene.roles["student"].cost.parameter_backwards == 3


@pytest.mark.parametrize(
    ("text", "expected"), [(free(), (3, 0, 3)), (free("pgd", passes=1), (4, 3, 1))]
)
def test_the_plan_tells_the_passes(text: str, expected: tuple[int, ...]) -> None:
    """Free: K of each for K updates. PGD: K more forwards and input backwards for one."""
    roles = plan_experiment(trainer_of(text).experiment).as_json()["roles"]
    keys = ("forwards", "input_backwards", "parameter_backwards")
    assert tuple(roles["student"][key] for key in keys) == expected
