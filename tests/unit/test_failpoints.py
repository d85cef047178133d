"""Planned failures: named, counted, and nothing without the variable."""

import errno
import signal
from collections import Counter

import pytest

from advdiff_core.engine import failpoints
from advdiff_core.engine.failpoints import VARIABLE, failpoint
from advdiff_core.errors import UsageError


@pytest.fixture
def plan(monkeypatch):
    """Arms a plan as a new process would read it."""

    def arm(text):
        monkeypatch.setenv(VARIABLE, text)
        monkeypatch.setattr(failpoints, "_calls", Counter())
        failpoints._planned.cache_clear()

    yield arm
    monkeypatch.undo()
    failpoints._planned.cache_clear()


def test_failpoint_strikes_only_at_the_planned_call_of_the_planned_point(plan):
    """The third call of one point fails; others, and its other calls, do not."""
    plan("save.rename:3:raise:EIO")
    for _ in range(2):
        failpoint("save.rename")
        failpoint("save.fsync")
    with pytest.raises(OSError, match="Input/output") as caught:
        failpoint("save.rename")
    assert caught.value.errno == errno.EIO
    failpoint("save.rename")


def test_failpoint_takes_several_faults(plan):
    """Faults joined by commas are all armed."""
    plan("a:1:raise:ENOSPC,b:1:raise:EACCES")
    for point, number in (("a", errno.ENOSPC), ("b", errno.EACCES)):
        with pytest.raises(OSError) as caught:
            failpoint(point)
        assert caught.value.errno == number


@pytest.mark.parametrize(
    ("action", "sent"), [("kill", signal.SIGKILL), ("signal:SIGTERM", signal.SIGTERM)]
)
def test_failpoint_sends_the_planned_signal_to_itself(plan, monkeypatch, action, sent):
    """`kill` is SIGKILL, `signal:NAME` any other."""
    calls = []
    monkeypatch.setattr(failpoints.os, "kill", lambda pid, number: calls.append((pid, number)))
    plan(f"loop.step:1:{action}")
    failpoint("loop.step")
    assert calls == [(failpoints.os.getpid(), sent)]


def test_failpoint_does_nothing_without_the_variable(plan):
    """An empty plan counts nothing."""
    plan("")
    failpoint("save.rename")
    assert not failpoints._calls


@pytest.mark.parametrize(
    "text",
    ["save", "save:1", "save:x:kill", "save:-1:kill", "save:1:raise:ENOPE", "save:1:kill:now"],
)
def test_failpoint_refuses_a_malformed_plan(plan, text):
    """A plan that would silently do nothing is an error that shows how to write one."""
    plan(text)
    with pytest.raises(UsageError, match="is not a planned fault") as caught:
        failpoint("anything")
    assert caught.value.where == VARIABLE
    assert "point:N:kill" in caught.value.fix
