"""Recipes of Stable Diffusion: whole runs with tiny networks of their classes, and real shapes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from advdiff_core.engine.api import train
from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.checkpoint import load
from advdiff_core.engine.manifest import newest_valid
from advdiff_core.engine.planning import plan_experiment
from advdiff_core.errors import AdvdiffError
from advdiff_core.recipe import load_recipe

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("advdiff_backbones")
pytest.importorskip("advdiff_datasets")

# Converted tensors inside diffusers, under the newest numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FOLDER = Path(__file__).parents[1] / "src" / "advdiff_adt" / "recipes"
NAMES = ("sd15", "sdxl", "sd3")
CAPTIONS = ("a red house", "a blue dog", "a red house", "a cat")
#: Distinct captions.
ROWS = 3
VAE = (
    '{latent_channels=4, block_out_channels=[4, 8], norm_num_groups=2, down_block_types=["DownEnc'
    'oderBlock2D", "DownEncoderBlock2D"], up_block_types=["UpDecoderBlock2D", "UpDecoderBlock2D"]}'
)
UNET = "block_out_channels=[8, 16], layers_per_block=1, norm_num_groups=4, cross_attention_dim=12"
NETS = {
    "sd15": f'{{{UNET}, attention_head_dim=2, down_block_types=["CrossAttnDownBlock2D", '
    '"DownBlock2D"], up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"]}',
    "sdxl": f'{{{UNET}, attention_head_dim=[2, 4], transformer_layers_per_block=[1, 2], '
    'use_linear_projection=true, addition_embed_type="text_time", addition_time_embed_dim=4, '
    'projection_class_embeddings_input_dim=34, down_block_types=["DownBlock2D", '
    '"CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"]}',
    "sd3": "{num_layers=2, num_attention_heads=2, attention_head_dim=8, joint_attention_dim=12, "
    "caption_projection_dim=16, pooled_projection_dim=10, pos_embed_max_size=8}",
}  # fmt: skip
ENCODER = (
    '{use="timm:test_vit", pretrained=false, image_size=32, patch_size=8, parametrization="none", '
    'sees="pictures", frozen=true}'
)


def prompts(folder: Path, rows: int = ROWS + 1) -> Path:
    """Embeddings of the captions and of no caption."""
    draws = torch.Generator().manual_seed(0)
    table = {
        "prompts": torch.randn(rows, 5, 12, generator=draws),
        "pooled": torch.randn(rows, 10, generator=draws),
    }
    path = folder / "prompts.safetensors"
    save_file(table, path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four pictures with captions, two of them alike."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    draws = np.random.default_rng(0)
    for number, text in enumerate(CAPTIONS):
        pixels = draws.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(text)
    return folder


def overrides(name: str, pictures: Path, table: Path) -> list[str]:
    """What makes a recipe run in seconds: tiny new networks of its classes, small pictures."""
    parts = ["data", "models.decoder"]
    return [
        "run.images=8", "run.batch=2", "run.checkpoint_every=8", "run.threads=1", "run.device=cpu",
        "run.precision=fp32", f"data.images.path={pictures}", "data.images.resolution=16",
        *(f'{part}.{key}=""' for part in parts for key in ("vae", "subfolder")),
        *(f"{part}.config={VAE}" for part in parts),
        'models.student.path=""', 'models.student.subfolder=""',
        f"models.student.config={NETS[name]}", f"models.student.prompts={table}",
        f"models.encoder={ENCODER}", "models.discriminator.width=8",
        "models.discriminator.hidden=8", "terms.adversarial.sampler.steps=3", "sample.steps=2",
        "sample.images=2", "players.student.every=2",
    ]  # fmt: skip


def state(run: Path, nimg: int | None = None) -> dict[str, Any]:
    """What a checkpoint of a run holds of its models."""
    path, _ = newest_valid(run / "checkpoints")
    assert path is not None
    found: dict[str, Any] = load(path).shared["models"]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_runs_from_pictures_to_tuned_adapters(
    name: str, pictures: Path, tmp_path: Path
) -> None:
    """Adapters and discriminator have moved; network, decoder and encoder are what they were."""
    recipe = load_recipe(FOLDER / f"{name}-adt.toml", overrides(name, pictures, prompts(tmp_path)))
    roles = assemble(recipe).scene.roles
    before = {role: roles[role].module.state_dict() for role in roles}
    run = train(recipe, out=tmp_path / "runs").run
    after = state(run)
    for role in ("encoder", "decoder"):
        for key, value in before[role].items():
            assert torch.equal(after[role][key], value), (role, key)
    moved = {key for key, value in before["student"].items() if changed(value, after, key)}
    assert moved
    assert all("lora_" in key for key in moved)
    heads = before["discriminator"]
    assert any(not torch.equal(after["discriminator"][key], heads[key]) for key in heads)


def changed(value: Tensor, after: dict[str, Any], key: str) -> bool:
    """Whether a tensor of the student is another one in a checkpoint."""
    return not torch.equal(after["student"][key], value)


def test_the_settings_that_are_known_are_the_papers() -> None:
    """K, H, lambda, sampler and start, whatever the network; nothing is warned of."""
    for name in NAMES:
        recipe = load_recipe(FOLDER / f"{name}-adt.toml")
        assert recipe.warnings == (), name
        term: Any = recipe.terms["adversarial"].spec.settings
        assert (term.gradient, term.gradient_steps, term.start) == ("adt", 3, "uniform")
        assert recipe.terms["denoise"].weight == 0.5
        assert recipe.players["student"].every == 5
        assert recipe.players["discriminator"].every == 1
    sampler: Any = load_recipe(FOLDER / "sd15-adt.toml").terms["adversarial"].spec.settings.sampler
    assert (sampler.use, sampler.settings.steps) == ("ddim", 50)


def test_stable_diffusion_3_is_run_and_sampled_on_the_times_of_its_pipeline(
    pictures: Path, tmp_path: Path
) -> None:
    """Those of diffusers' scheduler with a shift of 3, but for the schedule's end before t = 1."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    reference = FlowMatchEulerDiscreteScheduler(shift=3.0)
    reference.set_timesteps(28)
    steps = ["terms.adversarial.sampler.steps=28", "sample.steps=28"]
    keys = [*overrides("sd3", pictures, prompts(tmp_path)), *steps]
    recipe = load_recipe(FOLDER / "sd3-adt.toml", keys)
    term: Any = recipe.terms["adversarial"].spec.settings
    assert recipe.sample is not None
    made = assemble(recipe)
    for spec in (term.sampler, recipe.sample.spec):
        sampler: Any = made.make(spec)
        torch.testing.assert_close(sampler.grid(), reference.sigmas.double(), rtol=3e-4, atol=0.0)


def test_stable_diffusion_3_is_trained_on_the_times_of_its_training() -> None:
    """Standard logit-normal, moved by a shift of 3: the mean is log 3."""
    density = load_recipe(FOLDER / "sd3-adt.toml").schedule.density
    assert (density.law, density.std) == ("log-normal", 1.0)
    assert density.mean == pytest.approx(math.log(3), abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_counts_the_path_the_decoder_and_the_judge(
    name: str, pictures: Path, tmp_path: Path
) -> None:
    """The path's steps and the plain loss; the decoder on both sides; the judge of both players."""
    recipe = load_recipe(FOLDER / f"{name}-adt.toml", overrides(name, pictures, prompts(tmp_path)))
    report = plan_experiment(assemble(recipe))
    cost = report.step.roles
    assert cost["student"].forwards == 3 + 1
    assert cost["decoder"].forwards == 2
    assert cost["discriminator"].forwards == 2 + 1


def test_prompts_of_other_captions_are_refused(pictures: Path, tmp_path: Path) -> None:
    """A table with another number of rows than there are captions: shapes, file and the mend."""
    table = prompts(tmp_path, rows=ROWS + 2)
    recipe = load_recipe(FOLDER / "sd15-adt.toml", overrides("sd15", pictures, table))
    with pytest.raises(
        AdvdiffError, match=r"wanted prompts \[4, N, 12\], found \[5, 5, 12\]"
    ) as at:
        assemble(recipe)
    assert "embed_prompts" in str(at.value)
    (pictures / "3.png").unlink()
    with pytest.raises(AdvdiffError, match=r"3\.txt: is a caption without a picture"):
        assemble(recipe)
