"""Networks run as evaluation runs them, inside a training step; and the order of its forwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from advdiff_toys.networks import ToyNet
from advdiff_toys.perturbations import ToyFGSM
from torch import Tensor

from advdiff_core import DataInfo, Domain, Features, Forward, Logits, Spec, View
from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.distributed import World
from advdiff_core.engine.micro import choose_micro_batch
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.trainer import Trainer
from advdiff_core.errors import RecipeError
from advdiff_core.perturbations import AttackPerturbation
from advdiff_core.recipe import recipe_from_dict
from advdiff_core.step.plan import Phase, Plan
from advdiff_core.step.step import TrainStep
from advdiff_core.terms import CrossEntropy
from advdiff_core.testing.steps import Model, Moved, Stage, Turn, build_stage, run_step
from advdiff_core.types import Cost

DATA = DataInfo(shape=(1, 2, 2), count=64, classes=3, domain=Domain(-1.0, 1.0))
LABELS = torch.arange(8) % 3


def images() -> Tensor:
    """Images [8, 1, 2, 2] in [-1, 1], float64."""
    numbers = torch.Generator().manual_seed(5)
    return 2 * torch.rand(8, 1, 2, 2, generator=numbers, dtype=torch.float64) - 1


def model(*, train: bool = True, **keys: Any) -> Model:
    """A classifier with batch norm, and dropout if asked for."""
    recompute = keys.pop("recompute", False)
    settings = ToyNet.Settings(outputs=3, batch_norm=True, **keys)
    return Model(ToyNet, settings, parametrization="none", train=train, recompute=recompute)


def fgsm(**keys: Any) -> Moved:
    """A view moved by a sign step."""
    attack = ToyFGSM.Settings(**{k: keys.pop(k) for k in ("steps", "random_start") if k in keys})
    spec = Spec(kind="attack", use="toy-fgsm", settings=attack, component=ToyFGSM)
    settings = AttackPerturbation.Settings(attack=spec, radius=0.1, **keys)
    return Moved("image", AttackPerturbation, settings)


def stage(net: Model, **keys: Any) -> Stage:
    """A student whose running statistics are not those of the batch, and its attacked view."""
    made = build_stage(data=DATA, models={"student": net}, views={"adv": fgsm(**keys)})
    module: Any = made.scene.roles["student"].module.double()
    numbers = torch.Generator().manual_seed(1)
    size = module.norm.running_mean.shape
    module.norm.running_mean += torch.randn(size, generator=numbers, dtype=torch.float64)
    module.norm.running_var *= 3.0
    return made


def entered(made: Stage, *needs: Any) -> TrainStep:
    """A step in which the student trains on these queries."""
    phase = Phase(player="student", roles=frozenset({"student"}), needs=needs)
    step = made.step(Plan([phase], made.scene), images(), LABELS)
    step.enter(phase, [])
    return step


def state_of(made: Stage) -> dict[str, Tensor]:
    """Parameters and buffers of the student, copied."""
    return {k: v.clone() for k, v in made.scene.roles["student"].module.state_dict().items()}


def modes_of(made: Stage) -> list[bool]:
    """The mode of every part."""
    return [part.training for part in made.scene.roles["student"].module.modules()]


@pytest.mark.parametrize("recompute", [False, True])
def test_eval_logits_are_those_of_evaluation(recompute: bool) -> None:
    """Running statistics, no dropout; modes, one part's own included, and buffers stay."""
    made = stage(model(dropout=0.5, recompute=recompute))
    module: Any = made.scene.roles["student"].module
    module.layers[1].eval()
    before, modes = state_of(made), modes_of(made)
    query = Logits("student", "image", mode="eval")
    found = entered(made, query).get(query)
    assert modes_of(made) == modes
    assert all(torch.equal(v, before[k]) for k, v in state_of(made).items())
    torch.testing.assert_close(found, module.eval()(images()).output, rtol=0, atol=1e-12)


def test_both_modes_live_in_one_step() -> None:
    """They are different queries: neither answers for the other, and both are shared."""
    made = stage(model())
    train, evaluated = Logits("student", "image"), Logits("student", "image", mode="eval")
    step = entered(made, train, evaluated)
    assert not torch.allclose(step.get(train), step.get(evaluated))
    assert step.get(evaluated) is step.get(evaluated)
    assert made.scene.roles["student"].cost.forwards == 2


def test_eval_features_are_read_off_the_same_forward() -> None:
    """Taps follow the mode."""
    made = stage(model())
    tap = Features("student", "image", "layer.1", mode="eval")
    logits = Logits("student", "image", mode="eval")
    step = entered(made, tap, logits)
    expected = made.scene.roles["student"].module
    found = step.get(tap), step.get(logits)
    assert made.scene.roles["student"].cost.forwards == 1
    out = expected.eval()(images(), taps=("layer.1",))
    torch.testing.assert_close(found[0], out.features["layer.1"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("recompute", [False, True])
def test_eval_forwards_pass_gradients_to_the_input_alone(recompute: bool) -> None:
    """What is run for an attack is not what is trained."""
    made = stage(model(recompute=recompute))
    query = Logits("student", "image", mode="eval")
    x = images().requires_grad_()
    found = entered(made, View("image"), query).at("image", x).get(query)
    alone = entered(made, query).get(query)
    assert not alone.requires_grad
    (slope,) = torch.autograd.grad(found.square().sum(), x)
    module = made.scene.roles["student"].module.eval()
    z = images().requires_grad_()
    (expected,) = torch.autograd.grad(module(z).output.square().sum(), z)
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-12)
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_an_attack_sees_the_statistics_of_its_mode(mode: str) -> None:
    """Those of the batch, or the running ones: the sign step on each is another one."""
    made = stage(model(), mode=mode)
    before, modes = state_of(made), modes_of(made)
    found = entered(made, View("adv")).get(View("adv")).x_t
    assert modes_of(made) == modes
    assert all(torch.equal(v, before[k]) for k, v in state_of(made).items())
    steps = {}
    for kind in ("train", "eval"):
        x = images().requires_grad_()
        module = made.scene.roles["student"].module.train(kind == "train")
        loss = F.cross_entropy(module(x).output, LABELS, reduction="sum")
        (slope,) = torch.autograd.grad(loss, x)
        steps[kind] = (images() + 0.2 * slope.sign()).clamp(-1, 1)
    assert not torch.equal(steps["train"], steps["eval"])
    torch.testing.assert_close(found, steps[mode], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("mode", "objective", "cost"),
    [
        ("train", "kl", Cost(3 + 2, 3, 1)),
        ("eval", "kl", Cost(3 + 1 + 2, 3, 1)),
        ("train", "cross-entropy", Cost(3 + 2, 3, 1)),
        ("eval", "cross-entropy", Cost(3 + 2, 3, 1)),
        ("eval", "feature-gap", Cost(3 + 1 + 2, 3, 1)),
    ],
)
def test_the_clean_reference_is_of_the_attack_s_mode(mode: str, objective: str, cost: Cost) -> None:
    """Shared with training in train mode, one forward of its own in eval mode; both foretold."""
    keys = {"tap": "layer.0"} if objective == "feature-gap" else {}
    made = stage(model(), mode=mode, objective=objective, steps=3, random_start=True, **keys)
    terms = {view: made.make(CrossEntropy, CrossEntropy.Settings(view=view)) for view in VIEWS}
    result = run_step(made, [Turn("student", dict(terms))], images(), LABELS)
    assert result.counted["student"] == cost
    assert result.counted == result.planned


VIEWS = ("image", "adv")


def test_batch_norms_see_the_clean_batch_first_whatever_the_terms_are_called() -> None:
    """Two forwards, two updates: m (1 - m) of the clean batch and m of the adversarial one."""
    found = {}
    for order in (VIEWS, VIEWS[::-1]):
        made = stage(model(), mode="eval")
        module: Any = made.scene.roles["student"].module
        old, batches = module.norm.running_mean.clone(), []
        hook = module.norm.register_forward_hook(lambda _, x, __, to=batches: to.append(x[0]))
        terms = {v: made.make(CrossEntropy, CrossEntropy.Settings(view=v)) for v in order}
        run_step(made, [Turn("student", dict(terms))], images(), LABELS)
        hook.remove()
        found[order] = module.norm.running_mean.clone()
        # The layers share the norm: two updates a forward; the first forward is the attack's own.
        clean, adv = batches[2:4], batches[4:6]
        expected = old
        for batch in (*clean, *adv):
            expected = 0.9 * expected + 0.1 * batch.mean(0)
        torch.testing.assert_close(found[order], expected, rtol=0, atol=1e-12)
    assert torch.equal(*found.values())


def test_a_search_finds_statistics_as_the_last_step_left_them() -> None:
    """In eval mode it comes before the clean forward of training, as in Zhang et al. (2019)."""
    made = stage(model(), mode="eval")
    expected = entered(made, View("adv")).get(View("adv")).x_t
    adv = Forward("student", "adv")
    step = entered(made, Logits("student", "image"), adv)
    step.prepare((Logits("student", "image"), adv))
    assert torch.equal(step.get(View("adv")).x_t, expected)


def test_a_term_that_is_attacked_runs_as_training_does() -> None:
    """Its forwards are its own, so that a mode for them would be ignored: it is refused."""
    term = Spec(
        kind="loss_term", use="cross-entropy", settings=CrossEntropy.Settings(),
        component=CrossEntropy,
    )  # fmt: skip
    with pytest.raises(RecipeError) as caught:
        stage(model(), objective="term", term=term, mode="eval")
    text = str(caught.value)
    assert "views.adv.perturb.mode" in text
    assert "a term runs the model as training does" in text
    assert 'write mode = "train"' in text


def test_choosing_a_micro_batch_moves_no_statistics() -> None:
    """The step that counts bytes is no step of the run: its two images leave no trace."""
    recipe = recipe_from_dict({
        "advdiff": 1,
        "run": {"images": 64, "batch": 16},
        "data": {"use": "two-moons", "count": 64},
        "models": {"student": {"use": "toy-net", "parametrization": "none", "outputs": 2,
                               "batch_norm": True}},
        "terms": {"ce": {"use": "cross-entropy"}},
        "players": {"student": {"terms": ["ce"]}},
    })  # fmt: skip
    experiment = assemble(recipe)
    module = experiment.scene.roles["student"].module
    before = {k: v.clone() for k, v in module.state_dict().items()}
    assert choose_micro_batch(experiment, 16) == 16
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def batch_trainer(norm_start: str, micro: int = 16) -> Trainer:
    """A classifier of points with batch norm, before its first step."""
    recipe = recipe_from_dict({
        "advdiff": 1,
        "run": {"images": 64, "batch": 16, "micro_batch": micro, "precision": "fp32"},
        "data": {"use": "two-moons", "count": 64},
        "models": {"student": {"use": "toy-net", "parametrization": "none", "outputs": 2,
                               "batch_norm": True, "norm_start": norm_start}},
        "terms": {"ce": {"use": "cross-entropy"}},
        "players": {"student": {"terms": ["ce"]}},
    })  # fmt: skip
    ticks: Any = None
    return Trainer(assemble(recipe), world=World(), ticks=ticks, stop=StopFlag())


@pytest.mark.parametrize("norm_start", ["standard", "first-step"])
def test_running_statistics_may_begin_as_those_of_the_first_step(norm_start: str) -> None:
    """Momentum 1 at step 0, as in Haiku and DM-AT, and the network's own from step 1 on."""
    trainer, seen = batch_trainer(norm_start), []
    norm: Any = trainer.scene.roles["student"].module.norm  # type: ignore[union-attr]
    norm.register_forward_hook(lambda _, x, __: seen.append(x[0].detach()))
    mean, var = torch.zeros_like(norm.running_mean), torch.ones_like(norm.running_var)
    for step in range(3):
        seen.clear()
        trainer.train_step()
        m = 1.0 if norm_start == "first-step" and step == 0 else norm.momentum
        for x in seen:
            mean, var = (1 - m) * mean + m * x.mean(0), (1 - m) * var + m * x.var(0)
        assert norm.momentum == 0.1
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var, var, rtol=1e-5, atol=1e-6)


def test_the_first_statistics_of_micro_batches_are_those_of_the_last() -> None:
    """Each takes the place of the one before, as one batch after the other would."""
    trainer, seen = batch_trainer("first-step", micro=8), []
    norm: Any = trainer.scene.roles["student"].module.norm  # type: ignore[union-attr]
    norm.register_forward_hook(lambda _, x, __: seen.append(x[0].detach()))
    trainer.train_step()
    torch.testing.assert_close(norm.running_mean, seen[-1].mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("optimizer", "key"), [("sgd", "momentum"), ("adamw", "betas")])
def test_a_training_cycles_rate_and_momentum(optimizer: str, key: str) -> None:
    """Set before each step from the images seen alone, so that a resumed run agrees."""
    cycle = {"law": "one-cycle", "peak": 0.5, "stairs": 4, "momentum": [0.85, 0.95]}
    recipe = recipe_from_dict({
        "advdiff": 1,
        "run": {"images": 64, "batch": 16, "precision": "fp32"},
        "data": {"use": "two-moons", "count": 64},
        "models": {"student": {"use": "toy-net", "parametrization": "none", "outputs": 2}},
        "terms": {"ce": {"use": "cross-entropy"}},
        "players": {"student": {"terms": ["ce"], "optimizer": {"use": optimizer, "lr": 0.1},
                                "lr_schedule": cycle}},
    })  # fmt: skip
    ticks: Any = None
    trainer = Trainer(assemble(recipe), world=World(), ticks=ticks, stop=StopFlag())
    (player,) = trainer.experiment.players
    found = []
    for _ in range(4):
        trainer.train_step()
        group = player.optimizer.param_groups[0]
        found.append((group["lr"], group[key] if key == "momentum" else group[key][0]))
    rates, momenta = zip(*found, strict=True)
    assert rates == pytest.approx([0.004, 0.1, 0.05, 0.0])
    assert momenta == pytest.approx([0.95, 0.85, 0.9, 0.95])
