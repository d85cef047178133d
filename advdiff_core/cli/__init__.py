"""The command line `advdiff`. Loads torch and plugins only in the verbs that need them."""

from advdiff_core.cli.entry import main

__all__ = ["main"]
