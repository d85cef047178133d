"""The golden numbers: two steps of each shipped recipe at a small batch, in float32.

    python -m tests.golden.record        writes tests/golden/steps.json anew; say why in the commit

A change that should not alter results shows this file unchanged.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import tomli
import torch
from PIL import Image
from safetensors.torch import save_file

from advdiff_core.engine.golden import first_steps

#: Networks made for GPUs, in small.
_TEACHER = ["models.teacher.channels=16", "models.teacher.blocks=1"]
_STUDENT = ["models.student.depth=10", "models.student.width=1"]
_ENCODER = '{use="ddpmpp-unet", channels=16, blocks=1}'
_NOISY = [*_STUDENT, f"models.teacher.denoiser={_ENCODER}"]
_ALONE = (
    "cifar10-at", "cifar10-dm-at", "cifar10-dm-at-800", "cifar10-dm-at-20m", "cifar10-dm-at-50m",
    "cifar100-at", "cifar100-dm-at",
)  # fmt: skip
_ALIGNED = (
    "cifar10-dra", "cifar10-at-dra", "cifar10-dm-at-dra", "cifar10-dm-at-dra-20m",
    "cifar100-at-dra", "cifar100-dm-at-dra",
)  # fmt: skip
_VITS = (
    "cifar10-vit-dm-at-20m", "cifar10-vit-dm-at-50m", "cifar100-vit-dm-at", "imagenet-vit-dm-at",
)  # fmt: skip
_VITS_ALIGNED = (
    "cifar10-vit-dm-at-dra-20m", "cifar10-vit-dm-at-dra-50m", "cifar100-vit-dm-at-dra",
)  # fmt: skip
_VIT, _CONVNEXT = (["models.student.use=timm:test_vit"], ["models.student.use=timm:test_convnext"])
_LATENTS = [
    "models.target.denoiser.width=16", "models.target.denoiser.depth=14",
    "models.target.denoiser.heads=2", "models.target.zero_channels=[3, 9]",
    "models.target.encoder.vae=''", "models.target.encoder.image_size=16",
    "models.target.encoder.config={block_out_channels=[4, 8], norm_num_groups=2, "
    'latent_channels=4, down_block_types=["DownEncoderBlock2D", "DownEncoderBlock2D"], '
    'up_block_types=["UpDecoderBlock2D", "UpDecoderBlock2D"]}',
]  # fmt: skip
SMALLER = {
    "cifar10-adm": ["models.student.channels=32", "models.student.blocks=1"],
    "cifar10-trades": _STUDENT,
    "cifar10-diffusion-encoder": [f"models.student.denoiser={_ENCODER}"],
    **dict.fromkeys(_ALONE, _STUDENT),
    **{name: [*_STUDENT, *_TEACHER] for name in _ALIGNED},
    **dict.fromkeys(_VITS, _VIT),
    **{name: [*_VIT, *_TEACHER] for name in _VITS_ALIGNED},
    "imagenet-convnext-dm-at": _CONVNEXT,
    "imagenet-convnext-dm-at-dra": [*_CONVNEXT, *_LATENTS],
    "imagenet-vit-dm-at-dra": [*_VIT, *_LATENTS],
    "cifar10-dra-noisy-teacher": _NOISY,
    "cifar10-dm-at-dra-noisy-teacher": _NOISY,
    "cifar10-noisy-classifier": [f"models.student.denoiser={_ENCODER}"],
}
#: Stable Diffusion in small: the arguments of its networks.
_VAE = (
    "{in_channels=1, out_channels=1, latent_channels=4, block_out_channels=[4, 8], "
    'norm_num_groups=2, down_block_types=["DownEncoderBlock2D", "DownEncoderBlock2D"], '
    'up_block_types=["UpDecoderBlock2D", "UpDecoderBlock2D"]}'
)
_UNET = (
    "{block_out_channels=[8, 16], layers_per_block=1, norm_num_groups=4, attention_head_dim=2, "
    'cross_attention_dim=12, down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], '
    'up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"]}'
)
_XL = (
    "{block_out_channels=[8, 16], layers_per_block=1, norm_num_groups=4, "
    'attention_head_dim=[2, 4], cross_attention_dim=12, addition_embed_type="text_time", '
    "addition_time_embed_dim=4, projection_class_embeddings_input_dim=34, "
    "use_linear_projection=true, "
    'down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], '
    'up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"]}'
)
_SD3 = (
    "{num_layers=1, num_attention_heads=2, attention_head_dim=8, joint_attention_dim=12, "
    "caption_projection_dim=16, pooled_projection_dim=10, pos_embed_max_size=8}"
)
_TUNED = {"sd15-adt": _UNET, "sdxl-adt": _XL, "sd3-adt": _SD3}
ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_name("steps.json")


def shipped() -> list[Path]:
    """Every recipe of the repository, as sorted paths."""
    found = [*ROOT.glob("examples/*.toml"), *ROOT.glob("plugins/*/src/*/recipes/*.toml")]
    return sorted([*found, ROOT / "tests" / "recipes" / "players.toml"])


def stand_in(folder: Path) -> None:
    """Random pictures in the forms of CIFAR and of shards, for recipes whose users bring them."""
    draws = np.random.default_rng(0)
    ten = (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin")
    _write_cifar(folder / "cifar-10-batches-bin", ten, draws, labels=1)
    _write_cifar(folder / "cifar-100-binary", ("train.bin", "test.bin"), draws, labels=2)
    image = draws.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "synthetic.npz", image=image, label=np.arange(16) % 10)
    for place in range(8):
        inside = folder / "train" / f"n{place % 4}"
        inside.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[place]).save(inside / f"{place}.png")
    tables = {"prompts": torch.from_numpy(_prompts()), "pooled": torch.from_numpy(_pooled())}
    save_file(tables, folder / "prompts.safetensors")


def _write_cifar(
    folder: Path, names: tuple[str, ...], draws: np.random.Generator, *, labels: int
) -> None:
    """Eight pictures a file, in the binary form, each behind so many bytes of labels."""
    folder.mkdir(parents=True)
    for name in names:
        rows = draws.integers(0, 256, (8, 3072 + labels), dtype=np.uint8)
        rows[:, :labels] %= 10
        (folder / name).write_bytes(rows.tobytes())


def _prompts() -> np.ndarray:
    """Embeddings of two tokens for the ten digits, and for no prompt."""
    return np.random.default_rng(1).normal(size=(11, 2, 12)).astype(np.float32)


def _pooled() -> np.ndarray:
    """Embeddings of whole prompts, for Stable Diffusion XL and 3."""
    return np.random.default_rng(2).normal(size=(11, 10)).astype(np.float32)


def _stable_diffusion(folder: Path) -> list[str]:
    """Its recipes on digits, with new networks and made-up prompts."""
    found = [
        'data.images={use="digits"}',
        'data.vae=""',
        'data.subfolder=""',
        f"data.config={_VAE}",
    ]
    for role in ("teacher", "student", "target"):
        found += [f'models.{role}.path=""', f'models.{role}.subfolder=""']
        found += [f"models.{role}.config={_UNET}"]
        found += [f'models.{role}.prompts="{folder}/prompts.safetensors"']
    return found


def _tuned(name: str, folder: Path) -> list[str]:
    """Adversarial tuning of Stable Diffusion on digits, with new networks and made-up prompts."""
    parts = ("data", "models.decoder")
    return [
        'data.images={use="digits"}',
        *(f'{part}.{key}=""' for part in parts for key in ("vae", "subfolder")),
        *(f"{part}.config={_VAE}" for part in parts),
        'models.student.path=""', 'models.student.subfolder=""',
        f"models.student.config={_TUNED[name]}",
        f'models.student.prompts="{folder}/prompts.safetensors"',
        'models.encoder={use="timm:test_vit", pretrained=false, image_size=32, patch_size=8, '
        'parametrization="none", sees="pictures", frozen=true}',
        "terms.adversarial.sampler.steps=3",
    ]  # fmt: skip


def data_table(path: Path) -> dict[str, object]:
    """The table `data` of a recipe, with what it inherits from files beside it."""
    recipe = tomli.loads(path.read_text())
    named = recipe.get("extends", [])
    bases = [path.parent / name for name in ([named] if isinstance(named, str) else named)]
    found: dict[str, object] = {}
    for base in bases:
        found |= data_table(base) if base.is_file() else {}
    return {**found, **recipe.get("data", {})}


def overrides(path: Path, folder: Path) -> list[str]:
    """What a recipe needs to run on the stand-in, in seconds; data of its own stay."""
    small = _stable_diffusion(folder) if path.stem.startswith("lcm-sd15") else []
    tuned = _tuned(path.stem, folder) if path.stem in _TUNED else []
    return [*_sources(data_table(path), folder), *SMALLER.get(path.stem, ()), *small, *tuned]


def _sources(table: dict[str, object], folder: Path) -> list[str]:
    """Overrides that name the stand-in, where a recipe leaves its data to the user."""
    if table.get("use") == "mixture":
        # So few pictures cannot spare a thousand.
        real = [f"data.real.of.path={folder}", "data.real.skip=2", "evaluate.metrics=[]"]
        if "resolution" not in str(table):
            return [*real, f"data.synthetic.path={folder}/synthetic.npz"]
        sized = ["data.real.of.resolution=32", "data.synthetic.resolution=32"]
        return [*real, f"data.synthetic.path={folder}", *sized]
    return [f"data.path={folder}", "evaluate.metrics=[]"] if "path" in table else []


def main() -> None:
    """Write the file."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        stand_in(folder)
        found = {
            str(path.relative_to(ROOT)): first_steps(path, overrides(path, folder))
            for path in shipped()
        }
    FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
