"""What every test session sets up, and real data where there are any; for the conftest files."""

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

__all__ = ["real_data"]

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
