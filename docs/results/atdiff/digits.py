"""Experiment 1 on digits: diffusion and consistency models, plain and with free AT.

    python docs/results/atdiff/digits.py --out RUNS

8x8 digits in [-1, 1]; three seeds, a quarter of an hour of one CPU core in all. Numbers go to
records/digits.json.
"""

from __future__ import annotations

from here import arguments, open_lab
from matched import Setup, run_all

DIGITS = Setup(
    name="digits", batch=32, updates=960, warmup=100, num=1_000, clip=True,
    metric={"use": "frechet"}, number="frechet",
)  # fmt: skip


def main() -> None:
    """Train and measure all that is not there yet."""
    run_all(open_lab(arguments(__doc__)), DIGITS)


if __name__ == "__main__":
    main()
