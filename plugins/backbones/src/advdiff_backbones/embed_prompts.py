"""Embed prompts once, for networks that read text.

    python -m advdiff_backbones.embed_prompts CAPTIONS MODEL OUT.safetensors

CAPTIONS is a text file with one prompt a line, in the order of the classes, or a folder whose text
files hold one each: distinct ones, in order of text, as the dataset `captioned-folder` numbers
them. MODEL is a folder or hub repository of a pipeline of diffusers, with the subfolders
`tokenizer` and `text_encoder` of CLIP (Stable Diffusion 1 and 2). OUT gets `prompts` [K + 1, N, D],
what `prompts = "OUT"` of `diffusers:UNet2DConditionModel` reads; its last row is the empty prompt.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from advdiff_core.errors import AdvdiffError, UsageError

__all__ = ["embed", "main", "read_captions"]

_ABOUT = "Embed prompts once, for networks that read text."

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


@torch.no_grad()
def embed(texts: list[str], tokenizer: Any, encoder: Any) -> Tensor:
    """Embeddings of prompts and, last, of the empty one [K + 1, N, D], in float32.

    Args:
        texts: K prompts; what is longer than the encoder reads is cut off.
        tokenizer: CLIP's tokenizer.
        encoder: CLIP's text model; its last hidden state is taken, as Stable Diffusion does.
    """
    parts = []
    every = [*texts, ""]
    for start in range(0, len(every), BATCH):
        tokens = tokenizer(
            every[start : start + BATCH], padding="max_length", truncation=True,
            max_length=encoder.config.max_position_embeddings, return_tensors="pt",
        )  # fmt: skip
        parts.append(encoder(tokens.input_ids).last_hidden_state.float())
    return torch.cat(parts)


def _clip(model: str) -> tuple[Any, Any]:
    """Tokenizer and text encoder of a pipeline.

    Raises:
        UsageError: If transformers is missing, or nothing can be read there.
    """
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        fix = 'pip install "advdiff-backbones[diffusers]"'
        raise UsageError("this needs the library transformers", where="MODEL", fix=fix) from error
    try:
        tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
        encoder: Any = CLIPTextModel.from_pretrained(
            model, subfolder="text_encoder", use_safetensors=True
        )
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())
        message = f"cannot read tokenizer and text_encoder of {model}: {text}"
        fix = "write the folder or hub repository of Stable Diffusion 1 or 2"
        raise UsageError(message, where="MODEL", fix=fix) from error
    return tokenizer, encoder.eval()


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 if the file was written."""
    parser = argparse.ArgumentParser(
        prog="embed_prompts", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("captions", type=Path, help="text file, or folder of text files")
    parser.add_argument("model", help="folder or hub repository with tokenizer and text_encoder")
    parser.add_argument("out", type=Path, help="safetensors file to write")
    told = parser.parse_args(arguments)
    try:
        texts = read_captions(told.captions)
        prompts = embed(texts, *_clip(told.model))
    except AdvdiffError as error:
        parser.exit(2, f"{error}\n")
    save_file({"prompts": prompts}, told.out)
    sys.stdout.write(f"{told.out}: prompts {list(prompts.shape)}, the last one is empty\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
