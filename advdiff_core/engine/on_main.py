"""Work of the main process whose result every process needs."""

from __future__ import annotations

from collections.abc import Callable

from advdiff_core.engine.distributed import World
from advdiff_core.errors import AdvdiffError, StorageError

__all__ = ["on_main"]


def on_main(
    world: World, do: Callable[[], str], *, error: type[AdvdiffError] = StorageError
) -> str:
    """What `do` returns on the main process, on every process; its failure is a failure of all.

    Args:
        world: The processes.
        do: The work; the others wait for it.
        error: What its failure is raised as where there are several processes.

    Raises:
        AdvdiffError: As `do` raises it.
    """
    text, failure = "", ""
    if world.is_main:
        try:
            text = do()
        except AdvdiffError as cause:
            if world.size == 1:
                raise
            failure = str(cause)
    text, failure = world.gather(text)[0], world.gather(failure)[0]
    if failure:
        raise error(failure)
    return text
