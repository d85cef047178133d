"""Recipes for large GPUs in their real size: networks without numbers fit any machine."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tomli
import torch
from helpers_pages import ROOT
from safetensors.torch import save_file

from advdiff_core.engine.planning import plan_experiment
from advdiff_core.types import DataInfo, Domain

# Converted tensors inside diffusers, under the newest numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RESULTS = ROOT / "docs" / "results"
XL = tomli.loads((RESULTS / "costs" / "adt-sdxl.toml").read_text())["models"]
#: Networks as their published config.json has them, tokens and width of their pooled prompts, and
#: the number of parameters that diffusers counts in them.
CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, int, int]]] = {
    "sdxl-adt": (
        XL["student"]["config"], XL["decoder"]["config"], (77, 2048, 1280),
    ),
    "sd3-adt": (
        {
            "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16,
            "num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24,
            "joint_attention_dim": 4096, "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
        },
        {
            **XL["decoder"]["config"], "latent_channels": 16, "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
        (333, 4096, 2048),
    ),
}  # fmt: skip
#: Captions of the stand-in.
ROWS = 3


@pytest.fixture(scope="module")
def model() -> ModuleType:
    """What docs/results/costs.py counts with."""
    sys.path.insert(0, str(RESULTS))
    try:
        return importlib.import_module("costs_model")
    finally:
        sys.path.remove(str(RESULTS))


def inline(table: dict[str, Any]) -> str:
    """A table as a value of -s."""
    return f"{{{', '.join(f'{key} = {json.dumps(value)}' for key, value in table.items())}}}"


def overrides(name: str, folder: Path) -> list[str]:
    """The published shapes in place of the hub's files, and nothing smaller."""
    student, decoder, (tokens, width, pooled) = CONFIGS[name]
    table = folder / "prompts.safetensors"
    rows = {
        "prompts": torch.zeros(ROWS + 1, tokens, width),
        "pooled": torch.zeros(ROWS + 1, pooled),
    }
    save_file(rows, table)
    return [
        "run.device=cpu", "run.precision=fp32", 'models.student.path=""',
        'models.student.subfolder=""', f"models.student.config={inline(student)}",
        f"models.student.prompts={table}", 'models.decoder.vae=""', 'models.decoder.subfolder=""',
        f"models.decoder.config={inline(decoder)}", "models.encoder.pretrained=false",
        # Weights without numbers have no norm.
        "models.discriminator.spectral_norm=false",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parameters", "adapters", "forwards"),
    [
        ("sdxl-adt", 2_567_463_684, 23_224_320, 50 + 1),
        ("sd3-adt", 2_028_328_000, 4_718_592, 28 + 1),
    ],
)
def test_recipe_is_checked_and_planned_in_its_real_size(
    model: ModuleType, tmp_path: Path, name: str, parameters: int, adapters: int, forwards: int
) -> None:
    """Published networks with adapters that alone are trained, at 1024 pixels, and no fault."""
    path = model.recipe_path(f"advdiff-adt:{name}")
    assert model.load_recipe(path).warnings == ()
    recipe = model.load_recipe(path, overrides(name, tmp_path))
    channels = CONFIGS[name][1]["latent_channels"]
    latents = DataInfo(shape=(channels, 128, 128), count=1_000, classes=ROWS)
    pictures = DataInfo(shape=(3, 1024, 1024), count=1_000, domain=Domain(-1.0, 1.0), classes=ROWS)
    with model.weightless(latents, pictures):
        made = model.assemble(recipe)
        cost = plan_experiment(made).step.roles
    assert model.parameters_of(made.scene.roles["student"].module) == parameters + adapters
    student = next(player for player in made.players if player.name == "student")
    assert sum(p.numel() for _, p in student.parameters) == adapters
    assert cost["student"].forwards == forwards
    assert (cost["decoder"].forwards, cost["discriminator"].forwards) == (2, 3)
