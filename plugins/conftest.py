"""Plugins' tests run under the same settings as the core's, also when they are run alone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers_session import real_data

__all__ = ["real_data"]
