"""Several processes for tests: the command line in them, or functions of this file.

Run as a script it is one process of a test: it joins the others, does the scenarios that it is
named, and the first one writes what came of them.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["advdiff", "in_processes"]

TIMEOUT = 300


def advdiff(
    *args: object, nproc: int = 0, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line, in several processes if asked.

    Args:
        args: Its arguments.
        nproc: Value of `--nproc`; 0 to leave it out.
        env: Further variables.
    """
    several = ["--nproc", str(nproc)] if nproc else []
    return subprocess.run(
        [sys.executable, "-m", "advdiff_core", *map(str, args), *several],
        capture_output=True, text=True, timeout=TIMEOUT, check=False,
        env={**os.environ, **(env or {})},
    )  # fmt: skip


def in_processes(count: int, folder: Path, *scenarios: str) -> dict[str, Any]:
    """What scenarios of this file come to in `count` processes that have joined.

    Args:
        count: Number of processes.
        folder: Where they may write, and read what a test has left there.
        scenarios: Names of functions.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), *scenarios],
            stderr=subprocess.PIPE, text=True,
            env={
                **os.environ, "RANK": str(rank), "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(count)
    ]  # fmt: skip
    said = [process.communicate(timeout=TIMEOUT)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [0] * count, "\n".join(text[-3000:] for text in said)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def _collectives(world: Any, folder: Path) -> Any:
    """Every way of putting things together, with shares of different sizes."""
    import torch

    del folder
    whole = torch.arange(20.0).reshape(10, 2)
    mine = whole[world.part(10)]
    few = torch.arange(2.0)
    mean = [mine.mean(0).clone(), mine[:, 0].mean().clone()]
    world.average(mean, 10)
    return {
        "rows": torch.equal(world.rows(mine, 10), whole),
        "patient": torch.equal(world.rows(few[world.part(2)], 2, patient=True), few),
        "mean": [one.tolist() for one in mean],
        "sum": world.sum(torch.tensor([1.0, world.rank])).tolist(),
        "texts": world.gather("\u00e4" * world.rank),
        "votes": [world.all(world.rank < 2), world.any(world.rank == 2), world.any(False)],
        "main": world.ranks.on_main(lambda: {"from": world.rank}),
    }


def _evaluation(world: Any, folder: Path) -> Any:
    """Metrics of a run, samples and shards of it, an attack on another."""
    import torch

    from advdiff_core.engine.api import open_trained
    from advdiff_core.engine.robust.job import AttackJob
    from advdiff_core.engine.synthesis import Job, Synthesis

    denoiser = open_trained(folder / "denoiser", world=world)
    seeds = range(3, 3 + 7)
    made = denoiser.sample(seeds, batch=2)
    few = denoiser.sample(range(2), batch=2)
    torch.save({"seven": made.x0, "two": few.x0}, folder / f"samples-{world.rank}.pt")
    shards = Synthesis(
        trained=denoiser, job=Job(num=14, labels=(0, 1, 2), shard=4), folder=folder / "shards",
        batch=3,
    ).run()  # fmt: skip
    victim = open_trained(folder / "victim", world=world)
    job = AttackJob(attacks=({"use": "toy-fgsm"},), eps=(0.05, 0.2), num=23, batch=4, save=3)
    report = victim.attack(job)
    return {
        "nfe": [made.nfe, few.nfe], "metrics": denoiser.evaluate()["metrics"],
        "shards": [shards["count"], shards["shards"]], "report": report.as_json(),
        "folder": str(report.folder),
    }  # fmt: skip


def _norms(world: Any, folder: Path) -> Any:
    """Three steps of a classifier with batch norms: is every tensor the same everywhere?"""
    import hashlib

    import torch

    from advdiff_core.engine.assemble import assemble
    from advdiff_core.engine.signals import StopFlag
    from advdiff_core.engine.trainer import Trainer
    from advdiff_core.recipe import recipe_from_dict

    tables = json.loads((folder / "norms.json").read_text())
    trainer = Trainer(
        assemble(recipe_from_dict(tables), world=world), world=world,
        ticks=None, stop=StopFlag(),  # type: ignore[arg-type]
    )  # fmt: skip
    for _ in range(3):
        trainer.train_step()
    state = trainer.scene.roles["net"].module.state_dict()
    digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in state.values())).hexdigest()
    variance = next(t for name, t in state.items() if name.endswith("running_var"))
    moved = float((variance - torch.ones_like(variance)).abs().max())
    return {"digests": world.gather(digest), "moved": moved}


SCENARIOS: dict[str, Callable[[Any, Path], Any]] = {
    "collectives": _collectives, "evaluation": _evaluation, "norms": _norms,
}  # fmt: skip


def _main(folder: Path, scenarios: Sequence[str]) -> None:
    from advdiff_core.engine.distributed import joined_world

    with joined_world(timeout_s=120.0) as world:
        found = {name: SCENARIOS[name](world, folder) for name in scenarios}
        if world.is_main:
            (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2:])
