"""Settings of speed: what "auto" means on which machine, and that none of them changes a result."""

import os
import threading

import pytest
import torch

from advdiff_core.engine import compute as computing
from advdiff_core.engine.api import train
from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.checkpoint import load
from advdiff_core.engine.compute import choose_compute
from advdiff_core.engine.distributed import World
from advdiff_core.engine.feed import Feed
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.source import Source
from advdiff_core.engine.switches import CUBLAS, tf32_switched, torch_switches
from advdiff_core.engine.trainer import Trainer
from advdiff_core.errors import RecipeError
from advdiff_core.interfaces.dataset import Dataset
from advdiff_core.recipe import recipe_from_dict
from advdiff_core.recipe.schema import Run
from advdiff_core.step.scene import Compute
from advdiff_core.types import Batch, DataInfo, Domain

IMAGES = DataInfo(shape=(3, 32, 32), count=4, domain=Domain(-1.0, 1.0))
TABLES = {
    "run": {"images": 64, "batch": 16, "device": "cpu", "precision": "fp32"},
    "data": {"use": "two-moons", "count": 50},
    "models": {"student": {"use": "mlp", "width": 32, "blocks": 1}},
}


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that multiplies bfloat16, as far as questions go."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)


def chosen(**keys) -> Compute:
    """What a run with these keys computes on."""
    return choose_compute(Run(**keys), IMAGES, World())


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("keys", "tf32", "pinned"),
    [
        ({}, True, True),
        ({"precision": "fp32"}, False, True),
        ({"precision": "fp32", "tf32": True}, True, True),
        ({"tf32": False, "pinned": False}, False, False),
    ],
)
def test_gpu_has_tf32_beside_bf16_and_pinned_memory(keys, tf32, pinned):
    """Who writes fp32 gets float32, unless he asks for TF32 as well."""
    found = chosen(**keys)
    assert (found.device.type, found.tf32, found.pinned) == ("cuda", tf32, pinned)


def test_cpu_has_neither_whatever_is_asked_for(monkeypatch):
    """A recipe written for a GPU trains anywhere."""
    monkeypatch.setattr(computing, "multiplies_bf16", lambda device: True)
    found = chosen(device="cpu", tf32=True, pinned=True)
    assert (found.tf32, found.pinned) == (False, False)


def test_switches_of_torch_are_put_back(monkeypatch):
    """Also when the run fails; the process goes on as it was."""
    monkeypatch.setenv(CUBLAS, "")
    monkeypatch.delenv(CUBLAS)
    before = _state()

    def fail():
        with torch_switches(Run(deterministic=True, threads=1)):
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.backends.cudnn.benchmark
            assert os.environ[CUBLAS] == ":4096:8"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert _state() == before
    with torch_switches(Run(deterministic=False)):
        assert torch.backends.cudnn.benchmark
        assert not torch.are_deterministic_algorithms_enabled()
    assert _state() == before


def test_deterministic_products_keep_what_the_user_chose(monkeypatch):
    """There are two workspaces that repeat exactly."""
    monkeypatch.setenv(CUBLAS, ":16:8")
    with torch_switches(Run(deterministic=True)):
        assert os.environ[CUBLAS] == ":16:8"


@pytest.mark.parametrize(("tf32", "precision"), [(True, "high"), (False, "highest")])
def test_tf32_is_switched_for_a_gpu_alone(tf32, precision):
    """Products and convolutions alike."""
    before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    with tf32_switched(Compute(device=torch.device("cuda"), tf32=tf32)):
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.cudnn.allow_tf32 == tf32
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
    with tf32_switched(Compute()):
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def _state():
    return (
        torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
    )  # fmt: skip


class Numbers(Dataset):
    """Its index as a picture of one pixel."""

    def __init__(self):
        pass

    @property
    def info(self):
        """Forty of them."""
        return DataInfo(shape=(1, 1, 1), count=40, domain=Domain(0.0, 39.0), classes=40)

    def batch(self, indices):
        """The numbers."""
        return Batch(indices.float().view(-1, 1, 1, 1), indices)

    def fingerprint(self):
        """A name."""
        return "numbers"


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_stage_what_they_read_before_it_is_moved(workers, monkeypatch):
    """Part by part, in their own threads; the samples and their order stay the same."""
    monkeypatch.setattr("advdiff_core.engine.feed.CACHE_BYTES", 0)
    staged, moved = [], []

    def stage(x):
        staged.append((x.flatten().tolist(), threading.current_thread().name))
        return x

    def place(x):
        moved.append(x.flatten().tolist())
        return x

    feed = Feed(Source(Numbers()), seed=1, place=place, workers=workers, stage=stage)
    plain = Feed(Source(Numbers()), seed=1, place=lambda x: x)
    moved.clear()
    got = [feed.batch(p, 8, ahead=p + 8) for p in range(0, 24, 8)]
    feed.close()
    for number, batch in enumerate(got):
        expected = plain.batch(8 * number, 8)
        assert torch.equal(batch.x, expected.x)
        assert torch.equal(batch.y, expected.y)
    assert {name.startswith("advdiff-feed") for _, name in staged} == {True}
    values = [values for values, _ in staged]
    assert all(part in values for part in moved)


def test_pinning_is_asked_of_torch_once_for_samples_on_the_cpu(monkeypatch):
    """What is on the device already needs no copy."""
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: calls.append(x.shape) or x)
    x = torch.zeros(2, 3)
    assert Compute(pinned=True).stage(x) is x
    assert Compute(pinned=False).stage(x) is x
    assert Compute(pinned=True).stage(x.to("meta")).device.type == "meta"
    assert calls == [torch.Size([2, 3])]


def test_compiled_network_has_no_second_derivatives():
    """Terms that need them hear of it before the run."""
    tables = {**TABLES, "models": {"student": {**TABLES["models"]["student"], "compile": True}}}
    assert not assemble(recipe_from_dict(tables)).scene.models["student"].double_backward
    assert assemble(recipe_from_dict(TABLES)).scene.models["student"].double_backward


@pytest.mark.parametrize(
    ("how", "asked", "marked"),
    [(False, [], 0), (True, [None], 0), ("reduce-overhead", ["reduce-overhead"], 2)],
)
def test_mode_of_compilation_is_torchs_and_steps_begin_where_graphs_may_overwrite(
    how, asked, marked, monkeypatch
):
    """Recorded graphs keep their outputs until the next step."""
    modes, marks = [], []
    monkeypatch.setattr(torch, "compile", lambda net, mode: modes.append(mode) or net)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    tables = {**TABLES, "models": {"student": {**TABLES["models"]["student"], "compile": how}}}
    made = assemble(recipe_from_dict(tables))
    trainer = Trainer(made, world=World(), ticks=None, stop=StopFlag())
    for _ in range(2):
        trainer.train_step()
    assert (modes, len(marks)) == (asked, marked)


def test_unknown_mode_of_compilation_is_refused():
    """With what there is."""
    tables = {**TABLES, "models": {"student": {**TABLES["models"]["student"], "compile": "fast"}}}
    with pytest.raises(RecipeError, match=r"models\.student\.compile: .*reduce-overhead"):
        assemble(recipe_from_dict(tables))


ADVERSARIAL = {
    "views": {"adv": {"from": "clean", "perturb": {"use": "ray-fgsm"}}},
    "terms": {"denoise": {"use": "denoise"}, "adv": {"use": "equivariance", "view": "adv"}},
    "players": {"student": {"terms": ["denoise", "adv"]}},
}


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_training_learns_what_the_plain_one_learns(checkpointing, tmp_path):
    """With a search through the frozen network in each step, with and without recomputation."""
    pytest.importorskip("advdiff_robustadv")
    weights = []
    for compiled in (False, True):
        model = {**TABLES["models"]["student"], "compile": compiled}
        model["checkpointing"] = checkpointing and compiled
        recipe = recipe_from_dict({**TABLES, **ADVERSARIAL, "models": {"student": model}})
        run = train(recipe, out=tmp_path / str(compiled)).run
        weights.append(load(run / "checkpoints" / "64").shared["models"]["student"])
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-6)
