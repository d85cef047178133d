"""Embed prompts once, for networks that read text.

    python -m advdiff_backbones.embed_prompts CAPTIONS MODEL OUT.safetensors [--without-t5]

CAPTIONS is a text file with one prompt a line, in the order of the classes, or a folder whose text
files hold one each: distinct ones, in order of text, as the dataset `captioned-folder` numbers
them. MODEL is a folder or hub repository of a pipeline of diffusers: Stable Diffusion 1, 2, XL or
3. OUT gets `prompts` [K + 1, N, D] and, for XL and 3, `pooled` [K + 1, P]: what `prompts = "OUT"`
of `diffusers:UNet2DConditionModel` and `diffusers:SD3` reads. The last row is the empty prompt.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from advdiff_backbones.text_encoders import Encoder, encoder_of
from advdiff_core.errors import AdvdiffError, UsageError

__all__ = ["embed", "main", "read_captions"]

#: Prompts embedded at once.
BATCH = 64


def read_captions(path: Path) -> list[str]:
    """Prompts of a text file line by line, or the distinct ones of a folder in order of text.

    Raises:
        UsageError: If there is none, or if a file is no text.
    """
    try:
        if path.is_dir():
            texts = sorted({f.read_text(encoding="utf-8").strip() for f in path.rglob("*.txt")})
        else:
            texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot read {path}: {error}"
        raise UsageError(message, where="CAPTIONS", fix="write UTF-8 text") from error
    if not texts:
        fix = "write one prompt a line, or text files into the folder"
        raise UsageError(f"{path} holds no prompt", where="CAPTIONS", fix=fix)
    return texts


def embed(texts: list[str], encode: Encoder) -> dict[str, Tensor]:
    """Tables of the embeddings of prompts and, last, of the empty one, float32.

    Args:
        texts: K prompts.
        encode: The text encoders of a pipeline.

    Returns:
        `prompts` [K + 1, N, D] and, where the encoders make them, `pooled` [K + 1, P].
    """
    every = [*texts, ""]
    parts = [encode(every[start : start + BATCH]) for start in range(0, len(every), BATCH)]
    tables = {"prompts": torch.cat([part.prompts for part in parts])}
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return {**tables, "pooled": torch.cat(pooled)} if pooled else tables


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 if the file was written."""
    parser = argparse.ArgumentParser(
        prog="embed_prompts", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("captions", type=Path, help="text file, or folder of text files")
    parser.add_argument("model", help="folder or hub repository of Stable Diffusion")
    parser.add_argument("out", type=Path, help="safetensors file to write")
    parser.add_argument(
        "--without-t5", action="store_true",
        help="of Stable Diffusion 3, leave out its largest encoder (4.8 billion parameters)",
    )  # fmt: skip
    told = parser.parse_args(arguments)
    try:
        texts = read_captions(told.captions)
        tables = embed(texts, encoder_of(told.model, t5=not told.without_t5))
    except AdvdiffError as error:
        parser.exit(2, f"{error}\n")
    save_file({name: table.contiguous() for name, table in tables.items()}, told.out)
    shapes = ", ".join(f"{name} {list(table.shape)}" for name, table in tables.items())
    sys.stdout.write(f"{told.out}: {shapes}, the last one is empty\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
