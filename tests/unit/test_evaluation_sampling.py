"""What an evaluation lets metrics do: ask a denoiser, sample anew, judge other samples."""

import pytest
import torch
from attrs import evolve

from advdiff_core.datasets.points import ObliquePlane
from advdiff_core.draws import SeedDraws
from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.evaluation import RunEvaluation
from advdiff_core.engine.generate import generate
from advdiff_core.engine.source import Source
from advdiff_core.errors import RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.sampler import with_steps
from advdiff_core.recipe import recipe_from_dict
from advdiff_core.types import DataInfo, Domain, Subspace

RECIPE = {
    "run": {"images": 64, "batch": 32},
    "data": {"use": "oblique-plane", "count": 64},
    "models": {"student": {"use": "mlp", "width": 8}},
    "sample": {"use": "ddim", "steps": 3, "ema": -1},
    "evaluate": {"num": 6, "batch": 4},
}


@pytest.fixture(scope="module")
def experiment():
    """A small denoiser of points with random weights, none of them 0."""
    made = assemble(recipe_from_dict(RECIPE))
    generator = torch.Generator().manual_seed(0)
    for parameter in made.scene.roles["student"].module.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return made


@pytest.fixture
def evaluation(experiment, tmp_path):
    """Six samples of it."""
    made = RunEvaluation(experiment, tmp_path)
    found = generate(experiment, range(6), batch=4)
    made.samples, made.seeds = found.x0, found.seeds
    return made


def test_generate_repeats_the_samples_with_the_runs_own_sampler(evaluation):
    """Same seeds, weights and sampler: same bits; the first two of the seeds are theirs."""
    again = evaluation.generate(evaluation.sampler())
    assert torch.equal(again.x0, evaluation.samples)
    assert again.nfe == 3
    two = evaluation.generate(evaluation.sampler(), num=2)
    torch.testing.assert_close(two.x0, evaluation.samples[:2])


def test_generate_takes_other_steps_and_tells_them(evaluation):
    """The callback hears of five steps for each of two batches."""
    seen = []
    made = evaluation.generate(
        evaluation.sampler(steps=5), callback=lambda i, x, p: seen.append((i, len(x)))
    )
    assert made.nfe == 5
    assert seen == [(i, 4) for i in range(5)] + [(i, 2) for i in range(5)]


def test_denoiser_has_a_graph_to_the_input_and_none_to_the_weights(experiment, evaluation):
    """It answers as the role does, and no parameter gets a gradient."""
    denoise = evaluation.denoiser()
    x_t = evaluation.clean[:3].clone().requires_grad_()
    t = torch.full((3,), 0.5)
    found = denoise(x_t, t)
    found.eps.sum().backward()
    role = experiment.scene.roles["student"]
    assert float(x_t.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in role.module.parameters())
    assert role.module.training
    with torch.no_grad():
        torch.testing.assert_close(role.wear(role.module, x_t, t).value, found.value)


def test_denoiser_has_a_graph_to_the_weights_that_it_is_given(experiment, evaluation):
    """Those evaluated, given back: the same prediction, and a gradient for each of them."""
    given = {name: w.clone().requires_grad_() for name, w in evaluation.weights().items()}
    module = experiment.scene.roles["student"].module
    assert set(given) == {name for name, p in module.named_parameters() if p.requires_grad}
    x_t, t = evaluation.clean[:3], torch.full((3,), 0.5)
    found = evaluation.denoiser(weights=given)(x_t, t)
    assert torch.equal(found.value, evaluation.denoiser()(x_t, t).value)
    found.eps.square().sum().backward()
    assert all(float(w.grad.abs().sum()) > 0 for w in given.values() if w.numel() > 1)
    assert all(p.grad is None for p in module.parameters())
    moved = evaluation.denoiser(weights={name: 2 * w for name, w in given.items()})
    assert not torch.equal(moved(x_t, t).value, found.value)


def test_weights_leave_out_what_training_does_not_move(experiment, evaluation):
    """A fixed layer is none of them; of a network that is fixed as a whole there are all."""
    every = evaluation.weights()
    role = experiment.scene.roles["student"]
    first = next(iter(every))
    role.module.get_parameter(first).requires_grad_(False)
    assert set(evaluation.weights()) == set(every) - {first}
    role.module.requires_grad_(False)
    assert set(evaluation.weights()) == set(every)
    role.module.requires_grad_(True)


def test_denoiser_stops_at_a_tap_with_the_features_of_the_whole(experiment, evaluation):
    """The features are those of a whole forward, and nothing behind the tap is run."""
    tap = next(iter(experiment.scene.roles["student"].module.taps))
    x, t = evaluation.clean[:3], torch.full((3,), 0.4)
    whole = evaluation.denoiser(taps=(tap,))(x, t)
    stopped = evaluation.denoiser(taps=(tap,), stop_at=tap)(x, t)
    assert torch.equal(stopped.features[tap], whole.features[tap])
    assert stopped.value.numel() == 0


def test_module_has_a_graph_to_the_input_and_none_to_the_weights(experiment, evaluation):
    """Gradients reach an input that wants them; without one there is no graph at all."""
    x, t = evaluation.clean[:3].clone().requires_grad_(), torch.full((3,), 400.0)
    module = evaluation.module("student")
    (gradient,) = torch.autograd.grad(module(x, t, None).output.square().sum(), x)
    assert bool(gradient.abs().sum() > 0)
    assert not module(x.detach(), t, None).output.requires_grad
    assert all(p.grad is None for p in experiment.scene.roles["student"].module.parameters())


def test_with_samples_shares_what_was_read(evaluation):
    """Other samples, a folder below, the same clean data and memory."""
    other = evaluation.with_samples(torch.zeros(2, 3), "radius-1")
    assert other.clean is evaluation.clean
    assert torch.equal(other.samples, torch.zeros(2, 3))
    assert other.folder == evaluation.folder / "radius-1"
    assert other.folder.is_dir()
    other.remember("once", lambda: 1)
    assert evaluation.remember("once", lambda: 2) == 1
    other.note("few")
    assert evaluation.notes == ["few"]
    assert len(evaluation.samples) == 6


def test_with_steps_reaches_through_a_wrapper_and_refuses_others(experiment):
    """The wrapped sampler's key changes; without one it is R10."""
    spec = experiment.recipe.sample.spec
    assert with_steps(spec, 7).settings.steps == 7
    assert spec.settings.steps == 3
    bare = evolve(spec, settings=Build())
    with pytest.raises(RecipeError, match="sampler 'ddim' has no key `steps`, 7 steps are asked"):
        with_steps(bare, 7)


def test_plane_tells_its_subspace():
    """All points lie in it; its nearest points are the foot of the normal."""
    settings = ObliquePlane.Settings(count=50, normal=(1.0, 2.0, 2.0), offset=0.5)
    data = ObliquePlane(settings, Build(path="data"))
    plane = data.info.subspace
    x = data.batch(torch.arange(50)).x
    torch.testing.assert_close(plane.nearest(x), x.double(), atol=1e-6, rtol=0)
    normal = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64) / 3
    off = x.double() + 0.7 * normal
    torch.testing.assert_close(plane.nearest(off), x.double(), atol=1e-6, rtol=0)


def test_a_subspace_moves_with_the_domain():
    """From [0, 1] to [-1, 1] the origin moves as samples do; the directions stay."""
    known = Subspace(origin=torch.tensor([0.5, 1.0]).double(), basis=torch.eye(2).double()[:1])

    class _Data:
        info = DataInfo(shape=(2,), count=1, domain=Domain(0.0, 1.0), subspace=known)
        pictures = None

    source = Source(_Data(), domain=Domain(-1.0, 1.0))
    assert source.info.subspace.origin.tolist() == [0.0, 1.0]
    assert source.info.subspace.basis is known.basis
    assert source.info == DataInfo(shape=(2,), count=1, domain=Domain(-1.0, 1.0))


def test_child_streams_of_images_leave_their_parent_alone():
    """A child has numbers of its own, the same each time, whatever was drawn before."""
    plain, drawn = SeedDraws([3, 4]), SeedDraws([3, 4])
    child = drawn.child("attack", 1).normal((2, 5))
    assert torch.equal(plain.normal((2, 5)), drawn.normal((2, 5)))
    assert torch.equal(drawn.child("attack", 1).normal((2, 5)), child)
    assert torch.equal(SeedDraws([4]).child("attack", 1).normal((1, 5)), child[1:])
    assert not torch.equal(drawn.child("attack", 2).normal((2, 5)), child)
