"""The rows of the paper's tables: sizes of each recipe, and what makes it small enough to run."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
from attrs import frozen

RECIPES = Path(str(files("advdiff_dra"))) / "recipes"
#: Images of CIFAR's training set; an epoch of DM-AT is as many steps as they would fill.
REAL = 50_000


@frozen(kw_only=True)
class Row:
    """What the tables say of a run.

    Attributes:
        epochs: Epochs.
        batch: Images of a step.
        synthetic: Share of generated images; None for none at all.
        net: Depth and width of the wide resnet; None for another network.
        levels: Targets of the alignment; 0 without.
        data: The real data.
    """

    epochs: int
    batch: int
    synthetic: float | None = None
    net: tuple[int, int] | None = (28, 10)
    levels: int = 0
    data: str = "cifar10"

    @property
    def images(self) -> int:
        """Length of the run."""
        return self.epochs * -(-REAL // self.batch) * self.batch


AT = (34, 10)
ROWS = {
    "cifar10-dm-at": Row(epochs=400, batch=512, synthetic=0.7),
    "cifar10-dm-at-800": Row(epochs=800, batch=1024, synthetic=0.7),
    "cifar10-dm-at-20m": Row(epochs=2400, batch=2048, synthetic=0.8),
    "cifar10-dm-at-50m": Row(epochs=2000, batch=1024, synthetic=0.8, net=(70, 16)),
    "cifar10-dm-at-dra": Row(epochs=400, batch=512, synthetic=0.7, levels=1),
    "cifar10-dm-at-dra-20m": Row(epochs=2400, batch=2048, synthetic=0.8, levels=2),
    "cifar10-dm-at-dra-noisy-teacher": Row(epochs=400, batch=512, synthetic=0.7, levels=1),
    "cifar100-dm-at": Row(epochs=400, batch=512, synthetic=0.7, data="cifar100"),
    "cifar100-dm-at-dra": Row(epochs=400, batch=512, synthetic=0.7, levels=1, data="cifar100"),
}
#: Rows without generated images.
PLAIN = {
    "cifar10-at": Row(epochs=200, batch=128, net=AT),
    "cifar10-at-dra": Row(epochs=200, batch=128, net=AT, levels=1),
    "cifar100-at": Row(epochs=200, batch=128, net=AT, data="cifar100"),
    "cifar100-at-dra": Row(epochs=200, batch=128, net=AT, levels=1, data="cifar100"),
}

_SMALL = "{use='ddpmpp-unet', channels=16, channel_mult=[1, 2, 2], blocks=1}"


def smaller(name: str, row: Row) -> list[str]:
    """Overrides that make the networks of a recipe small."""
    found = []
    if row.net:
        found += ["models.student.depth=10", "models.student.width=1"]
    if "noisy" in name:
        found.append(f"models.teacher.denoiser={_SMALL}")
    elif row.levels:
        found += ["models.teacher.channels=16", "models.teacher.blocks=1"]
        # The grid of the end shows what the teacher makes.
        found += ["sample.images=1", "sample.steps=2"]
    return found


def sources(row: Row, folder: Path) -> list[str]:
    """Overrides that name the stand-in for the data."""
    if row.synthetic is None:
        return [f"data.path={folder}"]
    return [f"data.real.path={folder}", f"data.synthetic.path={folder / 'synthetic.npz'}"]


def write_stand_in(folder: Path) -> Path:
    """Random pictures in the binary forms of CIFAR-10 and CIFAR-100, and generated ones."""
    draws = np.random.default_rng(0)
    ten, hundred = folder / "cifar-10-batches-bin", folder / "cifar-100-binary"
    for inside, labels in ((ten, 1), (hundred, 2)):
        inside.mkdir()
        names = [f"data_batch_{n}.bin" for n in range(1, 6)] if labels == 1 else ["train.bin"]
        for name in (*names, "test_batch.bin" if labels == 1 else "test.bin"):
            rows = draws.integers(0, 256, (8, 3072 + labels), dtype=np.uint8)
            rows[:, :labels] %= 10
            (inside / name).write_bytes(rows.tobytes())
    image = draws.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "synthetic.npz", image=image, label=np.arange(16) % 10)
    return folder
