"""Text encoders of Stable Diffusion XL and 3, held to what diffusers' own pipelines make."""

import json

import pytest
import torch
from advdiff_backbones.embed_prompts import main
from advdiff_backbones.text_encoders import encoder_of
from diffusers import (
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
)
from safetensors.torch import load_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from advdiff_core.errors import UsageError

TEXTS = ["dog", "house", "abcdefghijklmnop", ""]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def clip_tokenizer():
    """Knows letters alone, and eight tokens."""
    ends = ["<|startoftext|>", "<|endoftext|>"]
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), *ends]
    vocab = {word: place for place, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=8)


def clip(cls, width, layers=2):
    """A tiny encoder of random weights."""
    config = CLIPTextConfig(
        vocab_size=54, hidden_size=width, intermediate_size=8, num_hidden_layers=layers,
        num_attention_heads=2, max_position_embeddings=8, bos_token_id=52, eos_token_id=53,
        pad_token_id=53, projection_dim=width,
    )  # fmt: skip
    return cls(config).eval()


def t5():
    """A tiny T5 and its tokenizer, which knows letters alone."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -2.0), *((one, -1.0) for one in LETTERS)]
    tokenizer = T5TokenizerFast(vocab=vocab, extra_ids=0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=24, d_kv=4, d_ff=8, num_layers=1, num_heads=2
    )
    return tokenizer, T5EncoderModel(config).eval()


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    """A pipeline of Stable Diffusion XL without network and autoencoder, and its folder."""
    torch.manual_seed(0)
    pipe = StableDiffusionXLPipeline(
        vae=None, unet=None, scheduler=None, tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), text_encoder=clip(CLIPTextModel, 8),
        text_encoder_2=clip(CLIPTextModelWithProjection, 12), add_watermarker=False,
    )  # fmt: skip
    return pipe, saved(pipe, tmp_path_factory.mktemp("xl"), ("", "_2"))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A pipeline of Stable Diffusion 3 with the least of a transformer, and its folder."""
    torch.manual_seed(1)
    words, last = t5()
    transformer = SD3Transformer2DModel(
        num_layers=1, num_attention_heads=2, attention_head_dim=4, joint_attention_dim=24,
        caption_projection_dim=8, pooled_projection_dim=20, sample_size=4, pos_embed_max_size=4,
    )  # fmt: skip
    pipe = StableDiffusion3Pipeline(
        transformer=transformer, scheduler=None, vae=None, tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), tokenizer_3=words,
        text_encoder=clip(CLIPTextModelWithProjection, 8),
        text_encoder_2=clip(CLIPTextModelWithProjection, 12), text_encoder_3=last,
    )  # fmt: skip
    folder = saved(pipe, tmp_path_factory.mktemp("three"), ("", "_2", "_3"))
    transformer.save_pretrained(folder / "transformer")
    return pipe, folder


def saved(pipe, folder, ends):
    """The parts of a pipeline that its prompts go through, as the pipeline writes them."""
    index = {"_class_name": type(pipe).__name__, "force_zeros_for_empty_prompt": True}
    for end in ends:
        for part in (f"tokenizer{end}", f"text_encoder{end}"):
            made = getattr(pipe, part)
            made.save_pretrained(folder / part)
            index[part] = ["transformers", type(made).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_xl_is_what_its_pipeline_makes_and_zeros_without_a_text(xl):
    """Both encoders side by side, the second one's projection; no prompt is zeros."""
    pipe, folder = xl
    found = encoder_of(str(folder))(TEXTS)
    for row, text in enumerate(TEXTS[:-1]):
        prompts, none, pooled, no_pooled = pipe.encode_prompt(text, device="cpu")
        torch.testing.assert_close(found.prompts[row], prompts[0])
        torch.testing.assert_close(found.pooled[row], pooled[0])
        assert torch.equal(found.prompts[-1], none[0])
        assert torch.equal(found.pooled[-1], no_pooled[0])
    assert found.prompts.shape == (4, 8, 20)
    assert found.pooled.shape == (4, 12)


def test_xl_embeds_the_empty_text_where_the_pipeline_does_not_say_zeros(xl, tmp_path):
    """As its training does that drops captions."""
    pipe, folder = xl
    index = json.loads((folder / "model_index.json").read_text())
    other = tmp_path / "xl"
    other.mkdir()
    for part in folder.iterdir():
        if part.is_dir():
            (other / part.name).symlink_to(part)
    (other / "model_index.json").write_text(
        json.dumps({**index, "force_zeros_for_empty_prompt": False})
    )
    found = encoder_of(str(other))([""])
    prompts, _, pooled, _ = pipe.encode_prompt("", device="cpu")
    torch.testing.assert_close(found.prompts, prompts)
    torch.testing.assert_close(found.pooled, pooled)


def test_three_is_what_its_pipeline_makes(three):
    """CLIP's tokens padded to T5's width, T5's behind them, both projections."""
    pipe, folder = three
    found = encoder_of(str(folder))(TEXTS)
    for row, text in enumerate(TEXTS):
        prompts, _, pooled, _ = pipe.encode_prompt(
            text, text, text, device="cpu", do_classifier_free_guidance=False
        )
        torch.testing.assert_close(found.prompts[row], prompts[0])
        torch.testing.assert_close(found.pooled[row], pooled[0])
    assert found.prompts.shape == (4, 8 + 256, 24)
    assert found.pooled.shape == (4, 20)


def test_three_without_t5_is_its_pipeline_without_it(three):
    """Its tokens are zeros, of the width that the transformer reads."""
    pipe, folder = three
    third, pipe.text_encoder_3 = pipe.text_encoder_3, None
    prompts, _, pooled, _ = pipe.encode_prompt(
        "dog", "dog", "dog", device="cpu", do_classifier_free_guidance=False
    )
    pipe.text_encoder_3 = third
    found = encoder_of(str(folder), t5=False)(["dog"])
    torch.testing.assert_close(found.prompts, prompts)
    torch.testing.assert_close(found.pooled, pooled)


def test_the_command_writes_both_tables(xl, tmp_path, capsys):
    """What the network of Stable Diffusion XL reads; batches of prompts change nothing."""
    _, folder = xl
    (tmp_path / "prompts.txt").write_text("\n".join(["dog", "house"] * 40))
    out = tmp_path / "out.safetensors"
    assert main([str(tmp_path / "prompts.txt"), str(folder), str(out)]) == 0
    assert "prompts [81, 8, 20], pooled [81, 12], the last one is empty" in capsys.readouterr().out
    tables = load_file(out)
    torch.testing.assert_close(tables["pooled"][0], tables["pooled"][78])
    assert not tables["pooled"][-1].any()


def test_encoders_of_another_class_are_refused(xl, tmp_path):
    """The class is named; nothing of it is run."""
    _, folder = xl
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder_2"] = ["transformers", "GemmaModel"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for part in folder.iterdir():
        if part.is_dir():
            (tmp_path / part.name).symlink_to(part)
    with pytest.raises(UsageError, match=r"text_encoder_2 of .* is a GemmaModel"):
        encoder_of(str(tmp_path))
