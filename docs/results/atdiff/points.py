"""Experiment 1 on points: diffusion and consistency models, plain and with free AT.

    python docs/results/atdiff/points.py --out RUNS

Points around eight modes on a circle; three seeds, ten minutes of one CPU core in all. Numbers go
to records/points.json.
"""

from __future__ import annotations

from here import arguments, open_lab
from matched import Setup, run_all

POINTS = Setup(
    name="points", batch=256, updates=750, warmup=75, num=10_000, clip=False,
    metric={"use": "sliced-wasserstein"}, number="sliced_wasserstein",
)  # fmt: skip


def main() -> None:
    """Train and measure all that is not there yet."""
    run_all(open_lab(arguments(__doc__)), POINTS)


if __name__ == "__main__":
    main()
