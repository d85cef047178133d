"""Shared by all tests: what `helpers_session` sets up, and toy distributions."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Helpers beside this file can be imported by tests in any folder below.
sys.path.insert(0, str(Path(__file__).parent))
from helpers_dists import Site
from helpers_session import real_data

from advdiff_core.discovery import Catalogue, scan

__all__ = ["real_data", "site", "toy_site", "toys"]


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
