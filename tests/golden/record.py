"""The golden numbers: two steps of each shipped recipe at a small batch, in float32.

    python -m tests.golden.record        writes tests/golden/steps.json anew; say why in the commit

A change that should not alter results shows this file unchanged.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from advdiff_core.engine.golden import first_steps

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_name("steps.json")


def shipped() -> list[Path]:
    """Every recipe of the repository, as sorted paths."""
    found = [*ROOT.glob("examples/*.toml"), *ROOT.glob("plugins/*/src/*/recipes/*.toml")]
    return sorted([*found, ROOT / "tests" / "recipes" / "players.toml"])


def main() -> None:
    """Write the file."""
    torch.set_num_threads(1)
    found = {str(path.relative_to(ROOT)): first_steps(path) for path in shipped()}
    FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
