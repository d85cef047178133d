"""Tags of temporary names: the maker is known dead or taken for alive."""

import os
import re
import subprocess
import sys

import pytest

from advdiff_core.engine import owner
from advdiff_core.engine.owner import TAG_PATTERN, is_dead, unique_tag


def parts(tag):
    """Machine, boot, process, start and random part of a tag."""
    return tag.split("-")


def test_tags_differ_and_match_their_pattern():
    """Two tags of one process are two names."""
    tags = {unique_tag() for _ in range(20)}
    assert len(tags) == 20
    assert all(re.fullmatch(TAG_PATTERN, tag) for tag in tags)


def test_tag_of_this_process_is_alive():
    """A running maker keeps its files."""
    assert not is_dead(unique_tag())


def test_tag_of_an_ended_process_is_dead():
    """The tag a child made counts as dead once the child has ended."""
    code = "from advdiff_core.engine.owner import unique_tag; print(unique_tag())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert is_dead(child.stdout.strip())


def test_tag_is_dead_when_its_process_id_was_reused():
    """The same id with another start time is another process."""
    machine, boot, pid, start, rest = parts(unique_tag())
    assert is_dead("-".join((machine, boot, pid, str(int(start) - 1), rest)))


def test_tag_of_a_zombie_is_dead():
    """A killed process that nobody has waited for yet makes no more files."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    machine, boot, _, _, rest = parts(unique_tag())
    start = owner._start(child.pid)
    tag = "-".join((machine, boot, str(child.pid), str(start), rest))
    assert not is_dead(tag)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_dead(tag)
    child.wait()
    child.stdin.close()


def test_tag_of_an_earlier_boot_is_dead():
    """Nothing survives a reboot."""
    machine, _, pid, start, rest = parts(unique_tag())
    assert is_dead("-".join((machine, "00000000", pid, start, rest)))


def test_tag_of_another_machine_is_taken_for_alive():
    """The processes of another machine on a shared disk cannot be seen from here."""
    _, boot, _, start, rest = parts(unique_tag())
    assert not is_dead("-".join(("00000000", boot, "999999999", start, rest)))


@pytest.mark.parametrize(
    ("answer", "dead"), [(None, False), (PermissionError, False), (ProcessLookupError, True)]
)
def test_tag_is_judged_by_a_signal_where_there_is_no_proc(monkeypatch, answer, dead):
    """Without /proc, only a process that surely does not exist is dead."""

    def kill(pid, number):
        assert number == 0
        if answer:
            raise answer

    tag = unique_tag()
    monkeypatch.setattr(owner.Path, "exists", lambda self: False)
    monkeypatch.setattr(owner.os, "kill", kill)
    assert is_dead(tag) is dead
