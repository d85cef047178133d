"""`diffusers:<class>`: the networks are diffusers' own, told what the core knows."""

import attrs
import diffusers
import pytest
import torch
from advdiff_backbones import diffusers_load, diffusers_models
from advdiff_backbones.diffusers_models import DiffusersFamily, Lora
from helpers_nets import PATH, check_taps_of, image_build, lively
from safetensors.torch import save_file

from advdiff_core.errors import ContractError, DataError, RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.schedules import Flow, VPLinear

UNET = {
    "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
    "attention_head_dim": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
TEXT_UNET = {
    "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
    "attention_head_dim": 2, "cross_attention_dim": 12,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
DIT = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "out_channels": 8}
SD3 = {
    "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "joint_attention_dim": 12,
    "caption_projection_dim": 16, "pooled_projection_dim": 20, "pos_embed_max_size": 8,
}  # fmt: skip
TINY = {"UNet2DModel": UNET, "UNet2DConditionModel": TEXT_UNET, "DiT": DIT, "SD3": SD3}


def latent_build(classes=3, c_noise=(1.0, 1000.0), shape=(4, 8, 8)):
    """A `Build` with latents, as a discrete schedule of 1,000 steps tells it."""
    return image_build(shape, classes=classes, domain=None, c_noise=c_noise)


def made(variant, build=None, **settings):
    """A tiny network with weights that all matter, in eval mode."""
    if "path" not in settings:
        settings = {"config": TINY[variant], **settings}
    torch.manual_seed(0)
    chosen = DiffusersFamily.settings_type(variant)(**settings)
    return lively(DiffusersFamily(chosen, build or latent_build()))


def inputs(count=2, seed=0, shape=(4, 8, 8)):
    """Noised latents [B, 4, 8, 8], noise levels [B] and labels [B]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *shape, generator=generator)
    return x, torch.tensor([1.0, 501.0])[:count], torch.tensor([2, 0])[:count]


def raw(net, x, timestep, labels):
    """The raw call of diffusers, as its documentation writes it."""
    own, text = net.net, net.prompts
    if isinstance(own, diffusers.UNet2DModel):
        return own(x, timestep, class_labels=labels).sample
    if isinstance(own, diffusers.UNet2DConditionModel):
        return own(x, timestep, encoder_hidden_states=text.prompts[labels]).sample
    if isinstance(own, diffusers.DiTTransformer2DModel):
        return own(x, timestep=timestep, class_labels=labels).sample
    prompts, pooled = text.prompts[labels], text.pooled[labels]
    return own(
        x, encoder_hidden_states=prompts, pooled_projections=pooled, timestep=timestep
    ).sample  # fmt: skip


@pytest.mark.parametrize("variant", TINY)
def test_output_is_that_of_the_raw_call(variant):
    """Labels, prompts and timesteps arrive as diffusers wants them: the lowest level is step 0."""
    net = made(variant, conditional=True)
    x, level, labels = inputs()
    last = 1000.0 if variant == "SD3" else 999.0
    timestep = (level - 1) / 999 * last
    for given, told in ((labels, labels), (None, torch.tensor([3, 3]))):
        found = net(x, level, given)
        wanted = raw(net, x, timestep, told)
        assert torch.equal(found.output, wanted[:, :4])
        assert (found.variance is None) == (variant != "DiT")
        if variant == "DiT":
            assert torch.equal(found.variance, wanted[:, 4:])
    assert not torch.equal(net(x, level, labels).output, net(x, level).output)
    assert not torch.equal(net(x, level + 9, labels).output, net(x, level, labels).output)


def test_ddpm_steps_are_whole_numbers():
    """Step i of 1,000 has c_noise i + 1 in the core, and is exactly i for diffusers."""
    net = made("UNet2DModel")
    told = net._told(torch.zeros(1000, 4, 8, 8), torch.arange(1.0, 1001.0), None)
    torch.testing.assert_close(told.timestep, torch.arange(1000.0), rtol=0, atol=1e-4)


def test_flow_times_are_thousandths():
    """SD3's timestep is 1,000 t, over all of [0, 1]."""
    net = made("SD3", latent_build(c_noise=(0.0, 1000.0)))
    told = net._told(torch.zeros(3, 4, 8, 8), torch.tensor([0.0, 250.0, 1000.0]), None)
    assert told.timestep.tolist() == [0.0, 250.0, 1000.0]


@pytest.mark.parametrize(("low", "high"), [(1e-4, 0.9999), (0.002994, 0.9), (0.4, 0.6)])
def test_flow_times_are_thousandths_whatever_is_trained(low, high):
    """The timestep of SD3 is 1,000 t also where the schedule ends short of 0 and 1."""
    flow = Flow(Flow.Settings(t_min=low, t_max=high), Build())
    build = attrs.evolve(latent_build(c_noise=flow.c_noise_range()), schedule=flow)
    t = torch.tensor([low, (low + high) / 2, high], dtype=torch.float64)
    told = made("SD3", build)._told(torch.zeros(3, 4, 8, 8), flow.c_noise(t), None)
    torch.testing.assert_close(told.timestep, 1000 * t.float(), rtol=1e-6, atol=0)


def test_timesteps_of_sd3_are_the_trained_range_on_other_schedules():
    """There its timestep has no meaning of its own, and all of it is used; as with log-sigma."""
    vp = VPLinear(VPLinear.Settings(), Build())
    flow = Flow(Flow.Settings(), Build())
    for schedule, low, high in ((vp, *vp.c_noise_range()), (flow, -2.3, 2.3)):
        build = attrs.evolve(latent_build(c_noise=(low, high)), schedule=schedule)
        told = made("SD3", build)._told(torch.zeros(2, 4, 8, 8), torch.tensor([low, high]), None)
        assert told.timestep.tolist() == [0.0, 1000.0]


@pytest.mark.parametrize("variant", TINY)
def test_taps_are_what_the_blocks_return(variant):
    """Taps come in forward order with their shapes, also when nothing later runs."""
    net = made(variant, conditional=True)
    x, level, labels = inputs()
    check_taps_of(net, x, level, labels)
    seen = {}
    for name in net.taps:
        net.net.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: seen.update({name: output})
        )
    found = net(x, level, labels, taps=tuple(net.taps)).features
    for name, feature in found.items():
        output = seen[name]
        if isinstance(output, tuple):
            output = output[-1 if variant == "SD3" else 0]
        assert torch.equal(feature, output)


def test_stopping_early_runs_no_later_block():
    """Nothing behind the tap runs, and the next forward runs whole again."""
    net = made("DiT")
    x, level, _ = inputs()
    ran = []
    for block in net.net.transformer_blocks:
        block.register_forward_pre_hook(lambda module, _: ran.append(module))
    stop = net(x, level, stop_at="transformer_blocks.0")
    assert stop.output is None
    assert stop.features == {}
    assert ran == list(net.net.transformer_blocks[:1])
    assert net(x, level).output is not None


def test_copies_have_taps_of_their_own():
    """A deep copy of a network catches in itself, not in the network it was copied from."""
    import copy

    net = made("UNet2DModel")
    twin = copy.deepcopy(net)
    x, level, _ = inputs()
    assert "mid_block" in twin(x, level, taps=("mid_block",)).features


def test_further_modules_can_be_tapped():
    """Any module path is a tap if it is named; unknown ones are refused with the nearest."""
    net = made("DiT", extra_taps=("transformer_blocks.1.ff",))
    assert list(net.taps) == [
        "transformer_blocks.0",
        "transformer_blocks.1.ff",
        "transformer_blocks.1",
    ]
    with pytest.raises(RecipeError, match=r"no module 'transformer_blocks\.1\.f'") as caught:
        made("DiT", extra_taps=("transformer_blocks.1.f",))
    assert "transformer_blocks.1.ff" in caught.value.faults[0].fix
    with pytest.raises(ContractError, match=r"no tap 'transformer_blocks\.7'"):
        net(*inputs(), taps=("transformer_blocks.7",))


@pytest.mark.parametrize("variant", TINY)
def test_a_folder_gives_the_network_that_was_saved(variant, tmp_path):
    """Saved by diffusers and read by path: the same output, with weights of safetensors alone."""
    saved = made(variant)
    saved.net.save_pretrained(tmp_path / "net")
    x, level, _ = inputs()
    loaded = made_as_saved(variant, tmp_path, prompts_of=saved)
    assert torch.equal(loaded(x, level).output, saved(x, level).output)
    torch.manual_seed(5)
    fresh = made_as_saved(variant, tmp_path, prompts_of=saved, pretrained=False)
    shapes = [tuple(p.shape) for p in fresh.net.parameters()]
    assert shapes == [tuple(p.shape) for p in saved.net.parameters()]
    assert not torch.equal(fresh(x, level).output, saved(x, level).output)


def made_as_saved(variant, folder, *, prompts_of, **settings):
    """The network in a folder, with the prompts of another."""
    settings |= {"path": str(folder), "subfolder": "net"}
    text = {n: t.detach().clone() for n, t in prompts_of.prompts.state_dict().items()}
    if text:
        save_file(text, folder / "prompts.safetensors")
        settings["prompts"] = folder / "prompts.safetensors"
    chosen = DiffusersFamily.settings_type(variant)(**settings)
    return DiffusersFamily(chosen, latent_build()).eval()


def test_prompts_from_a_file_are_fixed_and_kept(tmp_path):
    """They are buffers, no parameters, and part of the state."""
    file = tmp_path / "p.safetensors"
    table = torch.randn(4, 5, 12, generator=torch.Generator().manual_seed(3))
    save_file({"prompts": table}, file)
    net = made("UNet2DConditionModel", conditional=True, prompts=file)
    assert "prompts.prompts" in net.state_dict()
    assert not list(net.prompts.parameters())
    learned = made("UNet2DConditionModel", conditional=True, tokens=3)
    assert learned.prompts.prompts.shape == (4, 3, 12)
    assert learned.prompts.prompts.requires_grad


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (None, "cannot read"),
        ({"prompts": (3, 5, 12)}, "wanted prompts [4, N, 12], found [3, 5, 12]"),
        ({"prompts": (4, 5, 10)}, "wanted prompts [4, N, 12], found [4, 5, 10]"),
        ({"other": (4, 5, 12)}, "wanted prompts [4, N, 12], found none"),
    ],
)
def test_wrong_files_of_prompts_are_refused(tmp_path, tensors, words):
    """The message gives the shape found and wanted, and says what the rows are."""
    file = tmp_path / "p.safetensors"
    if tensors is not None:
        save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, file)
    with pytest.raises(DataError) as caught:
        made("UNet2DConditionModel", conditional=True, prompts=file)
    assert caught.value.code == "D01"
    assert words in caught.value.message
    assert caught.value.fix


def test_labels_are_dropped_in_training_alone():
    """With dropout 1 a training forward sees no label; an evaluation sees it."""
    net = made("DiT", conditional=True, label_dropout=1.0)
    x, level, labels = inputs()
    assert net.draws_random
    assert not torch.equal(net(x, level, labels).output, net(x, level).output)
    net.train()
    assert torch.equal(net(x, level, labels).output, net(x, level).output)


def test_the_label_dropout_of_dit_itself_is_off():
    """DiT of diffusers drops a tenth of the labels unasked; the adapter does not."""
    net = made("DiT", conditional=True).train()
    x, level, labels = inputs()
    assert not net.draws_random
    first = net(x, level, labels).output
    assert all(torch.equal(net(x, level, labels).output, first) for _ in range(20))


def test_adapters_alone_are_trained():
    """With LoRA the network is frozen, its output unchanged at first, and the adapters learn."""
    plain = made("UNet2DConditionModel", conditional=True)
    torch.manual_seed(0)
    settings = DiffusersFamily.settings_type("UNet2DConditionModel")(
        config=TEXT_UNET, conditional=True, lora=Lora(rank=2, targets=("to_q", "to_v"))
    )
    net = DiffusersFamily(settings, latent_build())
    fresh = DiffusersFamily(
        DiffusersFamily.settings_type("UNet2DConditionModel")(config=TEXT_UNET, conditional=True),
        latent_build(),
    )
    own = {n: p for n, p in net.net.named_parameters() if p.requires_grad}
    assert own
    assert all("lora_" in name for name in own)
    assert all(p.shape[0] == 2 or p.shape[1] == 2 for p in own.values())
    state = {
        n.replace(".base_layer", ""): t for n, t in net.state_dict().items() if "lora_" not in n
    }
    fresh.load_state_dict(state)
    x, level, labels = inputs()
    torch.testing.assert_close(
        net.eval()(x, level, labels).output, fresh.eval()(x, level, labels).output
    )
    net(x, level, labels).output.square().sum().backward()
    assert all(p.grad is not None for p in own.values())
    assert set(plain.taps) == set(net.taps)


def test_unknown_targets_of_adapters_are_refused():
    """The message is peft's, in one line, at the key."""
    with pytest.raises(RecipeError, match="not found in the base model") as caught:
        made("UNet2DModel", lora=Lora(targets=("to_z",)))
    assert caught.value.faults[0].key == f"{PATH}.lora.targets"


def test_missing_libraries_are_named(monkeypatch):
    """Without diffusers or peft one line says what to install."""
    found = diffusers_load.importlib.util.find_spec
    for missing, settings in (("diffusers", {}), ("peft", {"lora": Lora()})):
        monkeypatch.setattr(
            diffusers_models.importlib.util, "find_spec",
            lambda name, *rest, missing=missing: None if name == missing else found(name, *rest),
        )  # fmt: skip
        with pytest.raises(RecipeError, match=f"library {missing}, which is not inst") as caught:
            made("UNet2DModel", **settings)
        assert caught.value.faults[0].fix == 'pip install "advdiff-backbones[diffusers]"'


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("UNet2DModle", "no class 'UNet2DModle'; did you mean 'UNet2DModel'? there are UNet2DMo"),
        ("Flux", "no class 'Flux'; there are UNet2DModel, UNet2DConditionModel, DiTTransf"),
        (None, "no class None; there are"),
    ],
)
def test_other_classes_are_refused(variant, words):
    """The message names the nearest and all."""
    with pytest.raises(ValueError, match="no class") as caught:
        DiffusersFamily.settings_type(variant)
    assert words in str(caught.value)


def fault_of(variant, build=None, **settings):
    """The one fault with which a network refuses what it is built from."""
    with pytest.raises(RecipeError) as caught:
        made(variant, build, **settings)
    (fault,) = caught.value.faults
    assert fault.code == "R10"
    assert fault.fix
    return fault


def test_a_network_needs_a_path_or_a_config():
    """Neither and both are refused."""
    assert fault_of("DiT", config={}).message == "wanted either path or config, found neither"
    both = fault_of("DiT", path="somewhere", config=DIT)
    assert both.message == "wanted either path or config, found both"


def test_arguments_that_the_class_refuses_are_reported():
    """The complaint of diffusers is passed on in one line, with the key."""
    fault = fault_of("UNet2DModel", config={**UNET, "chanels": 3})
    assert fault.key == f"{PATH}.config"
    assert "chanels" in fault.message


def test_data_that_a_network_cannot_take_are_refused():
    """A size that two halvings do not divide: refused before anything runs."""
    fault = fault_of("UNet2DModel", latent_build(shape=(4, 7, 7)))
    assert fault.key == f"{PATH}.use"
    assert "cannot take data of shape [4, 7, 7]" in fault.message


def test_too_few_classes_are_refused(tmp_path):
    """A trained network with fewer label embeddings than the data have classes."""
    made("DiT", conditional=True).net.save_pretrained(tmp_path)
    fault = fault_of("DiT", latent_build(classes=9), path=str(tmp_path), conditional=True)
    assert "the data have 9 classes, but the network has 4 class embeddings" in fault.message


def test_absent_folders_are_refused(tmp_path):
    """An empty folder and, without a network, a name of the hub."""
    with pytest.raises(DataError, match="cannot read the folder") as caught:
        made("DiT", path=str(tmp_path))
    assert (caught.value.code, caught.value.where) == ("D01", f"{PATH}.path")
    assert "config.json" in caught.value.fix


def test_pickled_weights_are_not_read(tmp_path):
    """A folder with weights in torch's pickle format alone is refused."""
    net = made("DiT").net
    net.save_pretrained(tmp_path, safe_serialization=False)
    assert list(tmp_path.glob("*.bin"))
    with pytest.raises(DataError, match="cannot read the folder"):
        made("DiT", path=str(tmp_path))


@pytest.mark.parametrize("variant", ["UNet2DModel", "SD3"])
def test_checkpointing_changes_no_gradient(variant):
    """Recomputed blocks give the gradients of kept ones, taps included."""
    gradients = []
    for recompute in (False, True):
        net = made(variant, checkpoint_blocks=recompute).train()
        x, level, _ = inputs()
        found = net(x, level, taps=tuple(net.taps))
        loss = found.output.square().sum() + sum(f.square().sum() for f in found.features.values())
        loss.backward()
        gradients.append([p.grad for p in net.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_plain_weights_are_translated():
    """Names as the library writes them, and as a checkpoint of advdiff does, load strictly."""
    net, other = made("DiT"), made("DiT")
    other.load_state_dict(net.translate(net.net.state_dict()))
    other.load_state_dict(net.translate(net.state_dict()))


def test_guidance_is_told_as_lcm_tells_it():
    """`timestep_cond` holds sines and cosines of 1000 w, as in the pipeline of LCM."""
    net = made("UNet2DConditionModel", conditional=True, guided=True)
    x, level, labels = inputs()
    w = torch.tensor([4.0, 7.5])
    half = torch.exp(-torch.arange(128) * torch.log(torch.tensor(10000.0)) / 127)
    features = torch.cat([(1000 * w[:, None] * half).sin(), (1000 * w[:, None] * half).cos()], 1)
    own, prompts = net.net, net.prompts.prompts[labels]
    wanted = own(x, level - 1, encoder_hidden_states=prompts, timestep_cond=features).sample
    found = net(x, level, labels, guidance=w).output
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found, net(x, level, labels).output, atol=1e-3)
    assert net.added == ("net.time_embedding.cond_proj.weight",)


def test_guidance_added_to_a_trained_network_changes_nothing_yet(tmp_path):
    """The new layer starts at zero; a network that has one keeps it and its width."""
    made("UNet2DConditionModel", conditional=True).net.save_pretrained(tmp_path / "plain")
    config = {**TEXT_UNET, "time_cond_proj_dim": 16}
    told = made("UNet2DConditionModel", conditional=True, config=config)
    told.net.save_pretrained(tmp_path / "told")
    settings = DiffusersFamily.settings_type("UNet2DConditionModel")
    x, level, labels = inputs()
    grown = DiffusersFamily(
        settings(path=str(tmp_path / "plain"), conditional=True, guided=True), latent_build()
    ).eval()
    assert torch.equal(
        grown(x, level, labels).output, grown(x, level, labels, guidance=torch.ones(2)).output
    )
    kept = DiffusersFamily(settings(path=str(tmp_path / "told"), conditional=True), latent_build())
    assert kept.guided
    ours, theirs = (one.net.time_embedding.cond_proj.weight for one in (kept, told))
    assert torch.equal(ours, theirs)
    assert ours.shape[1] == 16


@pytest.mark.parametrize("variant", ["UNet2DModel", "DiT", "SD3"])
def test_networks_without_an_input_for_guidance_are_refused(variant):
    """R10, naming the class that has one."""
    with pytest.raises(RecipeError) as caught:
        made(variant, conditional=True, guided=True)
    (fault,) = caught.value.faults
    assert (fault.code, fault.key) == ("R10", f"{PATH}.guided")
    assert fault.message.endswith("has no input for the strength of guidance")
    assert fault.fix == "take UNet2DConditionModel, or write guided = false"


def test_a_teacher_of_other_latents_is_refused():
    """A network of three channels cannot take latents of four: one line that says so."""
    config = {**TEXT_UNET, "in_channels": 3, "out_channels": 3}
    with pytest.raises(RecipeError, match=r"cannot take data of shape \[4, 8, 8\]"):
        made("UNet2DConditionModel", conditional=True, config=config)
