"""What processes do together, tested in one: shares, buckets, who is missing, what must agree."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from advdiff_core.draws import Draws
from advdiff_core.engine import buckets, peers
from advdiff_core.engine.agreement import agree_on_work, apart, work_of
from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.buckets import Bucketed, buckets_of
from advdiff_core.engine.distributed import World, joined_world
from advdiff_core.engine.peers import Peers
from advdiff_core.engine.ranks import Ranks
from advdiff_core.engine.sharding import SHARDED, join, share_out, split
from advdiff_core.engine.tick import Ticks
from advdiff_core.errors import (
    DataError,
    Interrupted,
    LostPeerError,
    NumericsError,
    RecipeError,
    UnsoundError,
    UsageError,
)
from advdiff_core.recipe import load_recipe, recipe_from_dict

PLAYERS = Path(__file__).parents[1] / "recipes" / "players.toml"


# Shares.


@given(count=st.integers(0, 500), size=st.integers(1, 9))
def test_parts_hold_everything_once(count, size):
    """X07: whatever the counts, each thing has one process; some may have none."""
    parts = [World(rank=rank, size=size).part(count) for rank in range(size)]
    assert [place for part in parts for place in range(count)[part]] == list(range(count))
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 1
    if count >= size:
        shares = [World(rank=rank, size=size).share(count) for rank in range(size)]
        assert [(part.start, part.stop - part.start) for part in parts] == shares


@given(
    size=st.integers(2, 5), seed=st.integers(0, 99), step=st.integers(0, 50),
    batch=st.integers(5, 150),
)  # fmt: skip
def test_processes_draw_other_numbers_and_together_those_of_one(size, seed, step, batch):
    """X10: no number is drawn by two processes; joined, they are the draws of a single one."""
    key = (seed, step, "", "view/adv")

    def drawn(start: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        draws = Draws(key, start=start, size=count, total=batch, device="cpu")
        return draws.normal((count, 3)), draws.uniform((count,)), draws.stratified()

    parts = [drawn(*World(rank=rank, size=size).share(batch)) for rank in range(size)]
    for part, whole in zip(zip(*parts, strict=True), drawn(0, batch), strict=True):
        assert torch.equal(torch.cat(part), whole)
    normals = torch.cat([part[0] for part in parts]).flatten()
    assert len(normals.unique()) == len(normals)
    strata = (torch.cat([part[2] for part in parts]) * batch).long()
    assert sorted(strata.tolist()) == list(range(batch))


# Buckets.


@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=30),
    limit=st.integers(1, 400),
)
def test_buckets_hold_each_parameter_once_the_last_first(sizes, limit):
    """One data type a bucket; it is full at `limit` bytes, and not before."""
    parameters = [
        nn.Parameter(torch.zeros(n, dtype=torch.float64 if double else torch.float32))
        for n, double in sizes
    ]
    found = buckets_of(parameters, size=limit)
    flat = [parameter for bucket in found for parameter in bucket]
    assert [id(p) for p in flat] == [id(p) for p in reversed(parameters)]
    for bucket in found:
        assert len({p.dtype for p in bucket}) == 1
        assert sum(p.numel() * p.element_size() for p in bucket[:-1]) < limit


class _Doubled:
    """A sum over two processes that have the same gradients."""

    def __init__(self, flat: Tensor, log: list[str]) -> None:
        self.flat, self.log = flat, log

    def wait(self) -> None:
        """The sum is there."""
        self.log.append("wait")
        self.flat.mul_(2)


@pytest.fixture
def log(monkeypatch):
    """What is asked of torch.distributed: `send` and `wait`."""
    found: list[str] = []

    def all_reduce(flat: Tensor, *, async_op: bool) -> _Doubled:
        assert async_op
        found.append("send")
        return _Doubled(flat, found)

    monkeypatch.setattr(buckets.dist, "all_reduce", all_reduce)
    return found


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def test_buckets_leave_while_the_backward_runs(log):
    """The last layer's gradients are sent before those of the first are there."""
    net, x = _net(), torch.ones(5, 3, dtype=torch.float64, requires_grad=True)
    hidden = net[1](net[0](x))
    hidden.register_hook(lambda gradient: log.append("first layer"))
    with Bucketed(list(net.parameters()), size=1):
        net[2](hidden).sum().backward()
        assert log == ["send", "send", "first layer", "send", "send"]
    assert log[5:] == ["wait"] * 4


@pytest.mark.parametrize("size", [1, 60, 2**20])
def test_sums_are_complete_after_the_backward(log, size):
    """Gradients of several forwards, and what was there before, are summed once each."""
    net = _net()
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    net(x).square().sum().backward()
    (net(x) * net(x + 1)).sum().backward()
    wanted = [2 * p.grad for p in net.parameters()]
    net.zero_grad()
    net(x).square().sum().backward()
    with Bucketed(list(net.parameters()), size=size):
        (net(x) * net(x + 1)).sum().backward()
    for parameter, gradient in zip(net.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=0)


def test_searches_inside_a_step_send_nothing(log):
    """Gradients of inputs alone, first and second, touch no bucket."""
    net, x = _net(), torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    with Bucketed(list(net.parameters()), size=1):
        (first,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        torch.autograd.grad(first.square().sum(), x, retain_graph=True)
        assert log == []
        first.square().sum().backward()
    # The last bias has no part in a gradient of the input: it leaves at the end, as zeros.
    assert log.count("send") == 4
    assert torch.equal(net[2].bias.grad, torch.zeros(2, dtype=torch.float64))


def test_gradient_that_is_missing_counts_as_zero(log):
    """A network that a step does not reach takes part all the same: other processes wait for it."""
    used, unused = _net(), _net()
    with Bucketed([*used.parameters(), *unused.parameters()], size=1):
        used(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
        # Buckets leave in their order, and those of the second network come first.
        assert log == []
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in unused.parameters())
    assert log == ["send"] * 8 + ["wait"] * 8


def test_backward_that_fails_sends_no_more_and_leaves_no_hook(log):
    """Its error is the one that counts; later backwards are nobody's business."""
    net = _net()
    with pytest.raises(ValueError, match="stop"), Bucketed(list(net.parameters())):
        raise ValueError("stop")
    net(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    assert log == []


def test_error_of_the_backward_is_no_lost_process(log):
    """Only what needs the others is taken for their absence: a bug stays a bug."""
    peer = Peers(rank=0, size=2, timeout=1.0, store=dist.HashStore())
    world, net = World(rank=0, size=2, peers=peer), _net()
    with (
        pytest.raises(RuntimeError, match="shapes cannot be multiplied"),
        world.syncing(list(net.parameters())),
    ):
        net(torch.ones(1, 4, dtype=torch.float64)).sum().backward()


# Who is missing.


@pytest.fixture
def store(monkeypatch):
    """Notes of three processes."""
    monkeypatch.setattr(peers, "GRACE", 0.3)
    return dist.HashStore()


def _peer(store: Any, rank: int = 0, size: int = 3) -> Peers:
    return Peers(rank=rank, size=size, timeout=20.0, store=store)


def _sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def _introduced(store: Any, rank: int, pid: int, host: str | None = None) -> None:
    peer = _peer(store, rank)
    peer.introduce()
    note = json.loads(store.get(f"process/{rank}"))
    store.set(f"process/{rank}", json.dumps({**note, "pid": pid, "host": host or note["host"]}))


def test_process_that_is_gone_is_named(store):
    """X01: those who are alive say that they have lost somebody; who says nothing is missing."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    _introduced(store, 1, gone.pid)
    store.set("lost/2", "1")
    error = _peer(store).lost(RuntimeError("Connection closed by peer"))
    assert error.code == "X01"
    assert f"process 1 (pid {gone.pid} on " in error.message
    assert error.message.endswith("is gone")
    assert "process 2" not in error.message
    assert "run.timeout" in error.fix


def test_processes_that_are_stopped_or_silent_are_named_with_the_time(store):
    """X03: one is stopped, one lives and does not answer; both were waited for."""
    one, other = _sleeper(), _sleeper()
    try:
        one.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, one.pid, os.WSTOPPED | os.WNOWAIT)
        _introduced(store, 1, one.pid)
        _introduced(store, 2, other.pid)
        error = _peer(store).lost(RuntimeError("Timed out waiting 20000ms for recv operation"))
    finally:
        for process in (one, other):
            process.kill()
            process.wait()
    assert error.code == "X03"
    assert "is stopped and process 2" in error.message
    assert error.message.endswith("does not answer after 20 s")


def test_process_elsewhere_is_not_looked_up_here(store):
    """Its number means nothing on this machine."""
    _introduced(store, 1, os.getpid(), host="elsewhere")
    store.set("lost/2", "1")
    assert "on elsewhere) does not answer" in _peer(store).lost(RuntimeError("closed")).message


def test_process_that_never_introduced_itself_is_named_by_its_number(store):
    """It may be gone before it said where it runs."""
    store.set("lost/2", "1")
    store.set_timeout(timedelta(seconds=0.1))
    assert _peer(store).lost(RuntimeError("closed")).message == "process 1 does not answer"


def test_failure_that_nobody_is_missing_from_names_nobody(store):
    """All say that they have lost somebody."""
    store.set("lost/1", "1")
    store.set("lost/2", "1")
    assert _peer(store).lost(RuntimeError("closed")).message == "another process"


def test_notes_that_are_gone_were_with_the_first_process():
    """Process 0 keeps the notes: without them it is the one that is missing."""

    def gone(*_: object) -> None:
        raise RuntimeError("Broken pipe")

    store = SimpleNamespace(set=gone, set_timeout=gone, check=gone, get=gone)
    assert _peer(store, rank=1).lost(RuntimeError("x")).message == "process 0 does not answer"


def test_notes_of_a_stopped_first_process_are_not_waited_for(monkeypatch):
    """X03: asking it would take for ever; then it is the one that is missing."""
    monkeypatch.setattr(peers, "GRACE", 0.05)
    over = threading.Event()
    askers: list[threading.Thread] = []

    def stuck(*_: object) -> None:
        askers.append(threading.current_thread())
        over.wait(20)
        raise RuntimeError("Broken pipe")

    store = SimpleNamespace(set_timeout=lambda _: None, set=stuck, check=stuck, get=stuck)
    error = _peer(store, rank=1).lost(RuntimeError("Timed out waiting 4000ms"))
    over.set()
    # Left alone, but it ends in order when its wait does.
    askers[0].join(20)
    assert error.message == "process 0 does not answer after 20 s"


@pytest.mark.parametrize("rank", [0, 1])
def test_meeting_point_that_cannot_be_had_is_named(rank, monkeypatch):
    """X08: the port of the first process is taken, or nobody listens at it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        if rank:
            taken.close()
        _announce(monkeypatch, rank, port)
        with (
            pytest.raises(
                LostPeerError, match=f"cannot join 2 processes at 127.0.0.1:{port}: "
            ) as e,
            joined_world(timeout_s=1.0),
        ):
            pytest.fail("joined")
    assert (e.value.code, e.value.where) == ("X08", f"process {rank}")
    assert "--nproc" in e.value.fix
    assert not dist.is_initialized()


def _announce(monkeypatch: pytest.MonkeyPatch, rank: int, port: int) -> None:
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    values = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def test_environment_that_announces_half_of_it_is_refused(monkeypatch):
    """WORLD_SIZE alone is what some schedulers set for purposes of their own."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="RANK, MASTER_ADDR, MASTER_PORT missing") as caught:
        joined_world().__enter__()
    assert "unset WORLD_SIZE" in caught.value.fix


# Success and failure together.


def _ranks(size: int, notes: list[list[str]]) -> Ranks:
    """Process 0, and what the others say in turn."""
    return Ranks(rank=0, world=size, gather=lambda mine: [mine, *notes.pop(0)])


@pytest.mark.parametrize("kind", [DataError, Interrupted, NumericsError, UnsoundError, UsageError])
def test_failure_of_another_process_keeps_its_kind(kind):
    """The exit code of a run does not depend on the process that is asked."""
    note = {"exit": kind.exit_code, "message": "m", "code": "Z9", "where": "w", "fix": "f"}
    ranks = _ranks(2, [[json.dumps({"error": note})]])
    with pytest.raises(kind, match="process 1: w: m - f") as caught:
        ranks.agree(lambda: 1)
    assert type(caught.value) is kind


def test_work_of_the_main_process_is_everybodys():
    """Others do nothing and get its result."""
    ranks = Ranks(rank=1, world=2, gather=lambda mine: ['{"ok": [1, 2]}', mine])
    assert ranks.on_main(lambda: pytest.fail("another process did it")) == [1, 2]


# What has to be the same.


@pytest.fixture(scope="module")
def experiment():
    """What a process has built."""
    return assemble(load_recipe(PLAYERS))


@pytest.mark.parametrize(
    ("key", "other", "fix"),
    [
        ("recipe", "1234", "the same recipe"), ("code", "1234", "install the same"),
        ("plugins", "advdiff-core 0.0.1", "install the same"), ("torch", "1.0", "install the same"),
        ("data", "1234", "read the same data"), ("run", "00007-other", "the same --resume"),
        ("initial weights", {"student": "1234"}, "read the same files"),
    ],
)  # fmt: skip
def test_processes_that_do_something_else_are_refused(experiment, key, other, fix):
    """X05: before the first step, with the first difference and the process."""
    theirs = json.dumps({**work_of(experiment, Path("runs/00000-a")), key: other})
    world = SimpleNamespace(size=3, gather=lambda mine: [mine, mine, theirs])
    with pytest.raises(DataError, match=f"{key} differs: .* in process 0, .* in process 2") as e:
        agree_on_work(experiment, world, resume=Path("runs/00000-a"))  # type: ignore[arg-type]
    assert (e.value.code, e.value.where) == ("X05", "process 2")
    assert fix in e.value.fix


def test_processes_that_do_the_same_go_on(experiment):
    """Equal answers are no error; a single process asks nobody."""
    world = SimpleNamespace(size=2, gather=lambda mine: [mine, mine])
    agree_on_work(experiment, world)  # type: ignore[arg-type]
    agree_on_work(experiment, World())


def test_code_of_a_plugin_is_part_of_the_work(experiment, tmp_path, monkeypatch):
    """Another checkout of the same version is found out by its sources."""
    before = work_of(experiment, None)["code"]
    toys = sys.modules["advdiff_toys"]
    copy = tmp_path / "advdiff_toys"
    copy.mkdir()
    for path in Path(str(toys.__file__)).parent.glob("*.py"):
        (copy / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(toys, "__file__", str(copy / "__init__.py"))
    assert work_of(experiment, None)["code"] == before
    (copy / "networks.py").write_text("# changed\n")
    assert work_of(experiment, None)["code"] != before


def test_state_that_has_drifted_apart_is_named():
    """A hash of each tensor is compared; the first that differs is told, and by which process."""
    state = {
        "models": {"a": {"w": torch.ones(3), "e": torch.ones(0)}},
        "ema": [{"w": torch.ones(2)}],
    }
    state["models"]["odd"] = {
        "complex": torch.ones(2, dtype=torch.complex64), "count": torch.tensor(3),
        "eighth": torch.ones(2).to(torch.float8_e4m3fn), "half": torch.ones(2).bfloat16(),
    }  # fmt: skip
    assert apart(state, World()) == ""

    def theirs(mine: str) -> str:
        return json.dumps({**json.loads(mine), "models.a.w": 1, "ema.0.w": 2})

    same = SimpleNamespace(size=2, gather=lambda mine: [mine, mine])
    other = SimpleNamespace(size=3, gather=lambda mine: [mine, mine, theirs(mine)])
    assert apart(state, same) == ""  # type: ignore[arg-type]
    told = "process 2 holds another models.a.w and 1 more than process 0"
    assert apart(state, other) == told  # type: ignore[arg-type]


def test_drift_is_told_once_and_saved_as_the_first_process_has_it(capsys, tmp_path):
    """A warning, since machines that round differently drift without harm."""
    trainer = SimpleNamespace(world=SimpleNamespace(is_main=True))
    ticks = Ticks(rundir=None, store=None, hooks=None, info=None)  # type: ignore[arg-type]
    for _ in range(2):
        ticks._warn("process 1 holds another w than process 0", trainer)  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert said.count("advdiff: warning: process 1 holds another w than process 0 - ") == 1


# Shared-out state.


def test_state_without_shared_tensors_is_left_as_it_is():
    """Nothing is noted and nothing taken out."""
    state = {"models": {"a": {"w": torch.ones(2)}}, "n": 3, "list": [1, {"x": None}]}
    plain, pieces = split(state)
    assert plain == state
    assert (SHARDED in plain, pieces) == (False, {})


@given(rows=st.integers(0, 7), size=st.integers(1, 4))
def test_rows_are_put_together_in_the_order_of_processes(rows, size):
    """Also where some have none; in dicts and lists of any depth."""
    whole = torch.arange(rows * 2.0).reshape(rows, 2)
    chunks = [*whole.chunk(size), *[whole[:0]] * size][:size]
    place = json.dumps(["ema", "student", 0, "w"])
    state: dict[str, Any] = {"ema": {"student": [{"w": None}]}, SHARDED: {place: [rows, 2]}}
    join(state, [{place: chunk} for chunk in chunks])
    assert torch.equal(state["ema"]["student"][0]["w"], whole)
    assert SHARDED not in state


def test_compiled_role_is_not_shared_out():
    """R10: one of the two keys has to go."""
    told = "'student' is shared out to the processes and compiled"
    with pytest.raises(RecipeError, match=told):
        load_recipe(PLAYERS, ("models.student.shard=true", "models.student.compile=true"))


def test_role_that_nobody_trains_is_not_shared_out():
    """R10: it has neither gradients nor optimizer state, most of what there is to share."""
    tables = load_recipe(PLAYERS).to_dict()
    tables["models"]["teacher"] = {"use": "toy-net", "frozen": True, "shard": True}
    told = "'teacher' is shared out to the processes, and no player trains it"
    with pytest.raises(RecipeError, match=told):
        recipe_from_dict(tables)


def test_shared_out_role_needs_equal_shares_of_a_batch():
    """R10: processes run it together, so none may have a micro-batch more than another."""
    recipe = load_recipe(PLAYERS, ("models.student.shard=true",))
    told = "'student' is shared out to 3 processes, which need equal shares of a batch; found 16"
    with pytest.raises(UsageError, match=told) as caught:
        share_out(recipe, {}, 3, torch.device("cpu"))
    assert caught.value.fix == "take a multiple of 3"
    share_out(load_recipe(PLAYERS), {}, 3, torch.device("cpu"))
