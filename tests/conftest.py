"""Shared by all tests: Hypothesis profiles, one torch thread and toy distributions."""

import importlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

# Helpers beside this file can be imported by tests in any folder below.
sys.path.insert(0, str(Path(__file__).parent))
from helpers_dists import Site

from advdiff_core.discovery import Catalogue, scan

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs with Ctrl-C ignored, and so would be all that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("dev", deadline=None, max_examples=200)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An empty folder on `sys.path` to write distributions into."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    made = Site(folder)
    yield made
    made.forget()
    importlib.invalidate_caches()


@pytest.fixture(scope="session")
def toy_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Toy components of every kind, in the name of the core.

    Their metadata are not on `sys.path`: a scan of what is installed finds the real core.
    """
    made = Site(tmp_path_factory.mktemp("toy_metadata"), tmp_path_factory.mktemp("toy_code"))
    sys.path.insert(0, str(made.code))
    made.toy_core()
    yield made
    sys.path.remove(str(made.code))
    made.forget()


@pytest.fixture(scope="session")
def toys(toy_site: Site) -> Catalogue:
    """The catalogue of the toy components."""
    return scan([toy_site.folder], environ={})


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder with `data/` (CIFAR-10, MNIST) and `weights/`, read only; skips where there is none.

    `ADVDIFF_REAL_DATA` names it; otherwise a folder `shared` beside the repository is taken.
    """
    beside = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("ADVDIFF_REAL_DATA", beside))
    if not (folder / "data").is_dir():
        pytest.skip("no real data: ADVDIFF_REAL_DATA names no folder that holds data/")
    return folder
