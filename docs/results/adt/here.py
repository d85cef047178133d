"""What the scripts of this folder share with those of others, and where their numbers are kept."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from lab import Lab, arguments

__all__ = ["RECORDS", "Lab", "arguments", "open_lab"]

#: Folder of the finished numbers, in git; runs themselves are not.
RECORDS = Path(__file__).with_name("records")


def open_lab(given: Namespace) -> Lab:
    """The lab of this folder, for the options of a script."""
    return Lab(given.out, given.data, RECORDS)
