"""The rows of the paper's tables: sizes of each recipe, and what it needs to run in small."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
from attrs import frozen
from PIL import Image

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
    "cifar10-vit-dm-at-20m": Row(epochs=500, batch=1024, synthetic=0.8, net=None),
    "cifar10-vit-dm-at-dra-20m": Row(epochs=500, batch=1024, synthetic=0.8, net=None, levels=2),
    "cifar10-vit-dm-at-50m": Row(epochs=2000, batch=1024, synthetic=0.8, net=None),
    "cifar10-vit-dm-at-dra-50m": Row(epochs=2000, batch=1024, synthetic=0.8, net=None, levels=2),
    "cifar100-vit-dm-at": Row(epochs=400, batch=1024, synthetic=0.7, net=None, data="cifar100"),
    "cifar100-vit-dm-at-dra": Row(
        epochs=400, batch=1024, synthetic=0.7, net=None, levels=1, data="cifar100"
    ),
}
#: Rows without generated images.
PLAIN = {
    "cifar10-at": Row(epochs=200, batch=128, net=AT),
    "cifar10-at-dra": Row(epochs=200, batch=128, net=AT, levels=1),
    "cifar100-at": Row(epochs=200, batch=128, net=AT, data="cifar100"),
    "cifar100-at-dra": Row(epochs=200, batch=128, net=AT, levels=1, data="cifar100"),
}

_PICTURES = Row(epochs=100, batch=512, synthetic=0.7, net=None, data="imagenet-folder")
_ALIGNED = Row(epochs=100, batch=512, synthetic=0.7, net=None, levels=1, data="imagenet-folder")
#: Rows on ImageNet, whose epochs are passes over it.
IMAGENET = {
    "imagenet-vit-dm-at": _PICTURES,
    "imagenet-vit-dm-at-dra": _ALIGNED,
    "imagenet-convnext-dm-at": _PICTURES,
    "imagenet-convnext-dm-at-dra": _ALIGNED,
}
EVERY = {**ROWS, **PLAIN, **IMAGENET}

_UNET = "{use='ddpmpp-unet', channels=16, channel_mult=[1, 2, 2], blocks=1}"
#: The autoencoder of LightningDiT in the terms of diffusers, and one like it in small.
VAVAE = (
    "{block_out_channels=[128, 128, 256, 256, 512], layers_per_block=2, latent_channels=32, "
    "down_block_types=['DownEncoderBlock2D', 'DownEncoderBlock2D', 'DownEncoderBlock2D', "
    "'DownEncoderBlock2D', 'AttnDownEncoderBlock2D'], up_block_types=['AttnUpDecoderBlock2D', "
    "'UpDecoderBlock2D', 'UpDecoderBlock2D', 'UpDecoderBlock2D', 'UpDecoderBlock2D']}"
)
_VAE = (
    "{block_out_channels=[4, 8], norm_num_groups=2, latent_channels=4, "
    "down_block_types=['DownEncoderBlock2D', 'DownEncoderBlock2D'], "
    "up_block_types=['UpDecoderBlock2D', 'UpDecoderBlock2D']}"
)


def smaller(name: str, row: Row) -> list[str]:
    """Overrides that make the networks of a recipe small."""
    if row.net:
        found = ["models.student.depth=10", "models.student.width=1"]
    else:
        found = [f"models.student.use=timm:test_{'convnext' if 'convnext' in name else 'vit'}"]
    if not row.levels:
        return found
    if name in IMAGENET:
        sizes = ("width=16", "depth=14", "heads=2")
        found += [f"models.target.denoiser.{size}" for size in sizes]
        found += [*autoencoder(_VAE), "models.target.encoder.image_size=16"]
        return [*found, "models.target.zero_channels=[3, 9]"]
    if "noisy" in name:
        return [*found, f"models.teacher.denoiser={_UNET}"]
    # The grid of the end shows what the teacher makes.
    teacher = ["models.teacher.channels=16", "models.teacher.blocks=1"]
    return [*found, *teacher, "sample.images=1", "sample.steps=2"]


def autoencoder(config: str) -> list[str]:
    """Overrides that take a new autoencoder in place of the trained one."""
    return ["models.target.encoder.vae=''", f"models.target.encoder.config={config}"]


def sources(row: Row, folder: Path, *, resolution: int = 0) -> list[str]:
    """Overrides that name the stand-in for the data of training and of validation."""
    if row.synthetic is None:
        return [f"data.path={folder}"]
    real, held = "data.real.of", f"{{use='{row.data}', path='{folder}'}}"
    if row.data == "imagenet-folder":
        sized = [f"{table}.resolution={resolution}" for table in (real, "data.synthetic")]
        held = f"{{use='{row.data}', path='{folder}', resolution={resolution}}}"
        found = [f"{real}.path={folder}", f"data.synthetic.path={folder}", *sized]
    else:
        found = [f"{real}.path={folder}", f"data.synthetic.path={folder / 'synthetic.npz'}"]
    attack = "{use='pgd', steps=2, step='2/255', loss='margin'}"
    metric = f"{{use='robust-accuracy', eps='8/255', attack={attack}, data={held}}}"
    # So few pictures cannot spare a thousand.
    return [*found, "data.real.skip=2", f"validate.metrics=[{metric}]", "validate.every=16"]


def write_stand_in(folder: Path) -> Path:
    """Random pictures in the forms of CIFAR-10, CIFAR-100 and ImageNet, and generated ones."""
    draws = np.random.default_rng(0)
    ten = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
    _write_cifar(folder / "cifar-10-batches-bin", ten, draws, labels=1)
    _write_cifar(folder / "cifar-100-binary", ["train.bin", "test.bin"], draws, labels=2)
    image = draws.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "synthetic.npz", image=image, label=np.arange(16) % 10)
    for place in range(8):
        inside = folder / "train" / f"n{place % 4}"
        inside.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[place]).save(inside / f"{place}.JPEG")
    return folder


def _write_cifar(
    folder: Path, names: list[str], draws: np.random.Generator, *, labels: int
) -> None:
    """Eight pictures a file, in the binary form, each behind so many bytes of labels."""
    folder.mkdir()
    for name in names:
        rows = draws.integers(0, 256, (8, 3072 + labels), dtype=np.uint8)
        rows[:, :labels] %= 10
        (folder / name).write_bytes(rows.tobytes())
