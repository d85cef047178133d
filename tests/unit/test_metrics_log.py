"""metrics.jsonl: each line once, whatever was killed."""

import errno
import hashlib
import math

import pytest

from advdiff_core.engine.fsio import FileSystem
from advdiff_core.engine.metrics_log import MetricsLog, read_metrics
from advdiff_core.engine.rundir import RunDir
from advdiff_core.errors import DataError, StorageError


@pytest.fixture
def path(tmp_path):
    """The file."""
    return tmp_path / "metrics.jsonl"


def test_log_gives_back_its_records(path):
    """Numbers to the last bit; those that are not finite too, though JSON has none."""
    log = MetricsLog(path)
    log.record({"nimg": 10, "loss": 0.1 + 0.2, "name": "x"})
    log.record({"nimg": 20, "loss": float("nan"), "grad": float("inf"), "low": float("-inf")})
    log.close()
    first, second = read_metrics(path)
    assert first == {"nimg": 10, "loss": 0.1 + 0.2, "name": "x"}
    assert math.isnan(second["loss"])
    assert (second["grad"], second["low"]) == (math.inf, -math.inf)
    assert b"NaN" not in path.read_bytes()


def test_log_is_cut_back_to_the_mark_of_the_checkpoint(path):
    """K08: killed after a save, the steps since are run again; each line is there once."""
    log = MetricsLog(path)
    log.record({"nimg": 1})
    mark = log.mark()
    assert mark == {"bytes": 11, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    log.record({"nimg": 2})
    log.close()
    path.write_bytes(path.read_bytes() + b'{"nimg": 3')
    resumed = MetricsLog(path, mark)
    assert [row["nimg"] for row in read_metrics(path)] == [1]
    for nimg in (2, 3):
        resumed.record({"nimg": nimg})
    assert [row["nimg"] for row in read_metrics(path)] == [1, 2, 3]
    assert resumed.mark()["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_log_goes_on_at_its_end_without_a_mark(path):
    """A torn last line is cut off, whole ones stay."""
    path.write_bytes(b'{"nimg":1}\n{"nimg":2}\n{"ni')
    log = MetricsLog(path)
    log.record({"nimg": 3})
    assert [row["nimg"] for row in read_metrics(path)] == [1, 2, 3]
    assert log.mark()["bytes"] == path.stat().st_size


@pytest.mark.parametrize(
    "content", [b"", b'{"nimg":1', b'{"nimg":9}\n', b'{"nimg":9}\n{"nimg":2}\n']
)
def test_log_that_is_not_the_one_of_the_checkpoint_is_refused(path, content):
    """K08: a shorter or edited log is not continued as if it were whole."""
    log = MetricsLog(path)
    log.record({"nimg": 1})
    mark = log.mark()
    log.close()
    path.write_bytes(content)
    with pytest.raises(
        DataError, match="first 11 bytes are not those the checkpoint was saved with"
    ) as e:
        MetricsLog(path, mark)
    assert (e.value.code, e.value.where) == ("K08", str(path))
    assert path.read_bytes() == content


def test_log_that_is_gone_is_refused_if_it_held_something(path):
    """K08: but a run that had logged nothing needs no file."""
    with pytest.raises(DataError, match="the file is missing") as caught:
        MetricsLog(path, {"bytes": 5, "sha256": ""})
    assert caught.value.code == "K08"
    MetricsLog(path, {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}).record({"a": 1})
    assert read_metrics(path) == [{"a": 1}]


def test_log_reader_leaves_a_torn_line_out_and_names_a_broken_one(path):
    """S15: only the end may be torn, by a kill."""
    path.write_bytes(b'{"a":1}\n{"a":')
    assert read_metrics(path) == [{"a": 1}]
    for line in (b"{bad}", b"[1]", b"\xff", b'{"a":1,"a":2}'):
        path.write_bytes(b'{"a":1}\n' + line + b"\n")
        with pytest.raises(DataError) as caught:
            read_metrics(path)
        assert (caught.value.code, caught.value.where) == ("S15", f"{path}:2")


@pytest.mark.parametrize("operation", ["append", "fsync", "truncate"])
def test_log_reports_a_disk_that_fails_and_keeps_whole_lines(path, operation):
    """S04: a line is there or not; the mark never vouches for what is not on the disk."""

    class Failing(FileSystem):
        def before(self, name, where):
            if name == operation:
                raise OSError(errno.EIO, "Input/output error")

    path.write_bytes(b'{"nimg":1}\n{"ni')

    def use():
        log = MetricsLog(path, fs=Failing())
        log.record({"nimg": 2})
        log.mark()

    with pytest.raises(StorageError) as caught:
        use()
    assert (caught.value.code, caught.value.where) == ("S04", str(path))
    assert read_metrics(path)[0] == {"nimg": 1}


def test_half_a_line_on_a_full_disk_is_taken_back(path):
    """S03: what was written of the line goes, so that the next one is readable."""

    class Full(FileSystem):
        full = True

        def append(self, descriptor, where, data):
            if self.full:
                super().append(descriptor, where, data[:4])
                raise OSError(errno.ENOSPC, "No space left on device")
            super().append(descriptor, where, data)

    disk = Full("log")
    log = MetricsLog(path, fs=disk)
    with pytest.raises(StorageError, match="the disk is full"):
        log.record({"nimg": 1})
    disk.full = False
    log.record({"nimg": 2})
    assert read_metrics(path) == [{"nimg": 2}]


def test_run_opens_its_log_when_it_is_needed(tmp_path):
    """A run records, marks and resumes by its own methods."""
    run = RunDir(tmp_path)
    run.record({"nimg": 1})
    mark = run.metrics_mark()
    run.record({"nimg": 2})
    run.open_metrics(mark)
    assert read_metrics(run.metrics) == [{"nimg": 1}]
    assert RunDir(tmp_path).metrics_mark() == mark
