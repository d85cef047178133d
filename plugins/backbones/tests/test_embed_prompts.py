"""Prompt embeddings by CLIP, as Stable Diffusion reads them."""

import json

import pytest
import torch
from advdiff_backbones.embed_prompts import main, read_captions
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ENDS = ["<|startoftext|>", "<|endoftext|>"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny pipeline of random weights, whose tokenizer knows letters alone."""
    folder = tmp_path_factory.mktemp("model")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), *ENDS]
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(
        json.dumps({w: n for n, w in enumerate(words)})
    )
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 8})
    )
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=8, bos_token_id=52, eos_token_id=53,
        pad_token_id=53,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


def test_rows_are_the_prompts_and_the_empty_one(model, tmp_path, capsys):
    """In the order of the lines, each what CLIP makes of it alone; long ones are cut off."""
    lines = ["dog", "house", "abcdefghijklmnop"]
    (tmp_path / "prompts.txt").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out.safetensors"
    assert main([str(tmp_path / "prompts.txt"), str(model), str(out)]) == 0
    assert "prompts [4, 8, 8], the last one is empty" in capsys.readouterr().out
    found = load_file(out)["prompts"]
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(model / "text_encoder").eval()
    for row, text in zip(found, [*lines, ""], strict=True):
        tokens = tokenizer(
            [text], padding="max_length", max_length=8, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            wanted = encoder(tokens.input_ids).last_hidden_state[0]
        torch.testing.assert_close(row, wanted)
    assert not torch.allclose(found[0], found[1])


def test_a_folder_gives_distinct_captions_in_order_of_text(tmp_path):
    """As the dataset `captioned-folder` numbers them."""
    for name, text in {"b/2": " a red house\n", "a/1": "a red house", "a/3": "a blue dog"}.items():
        path = tmp_path / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert read_captions(tmp_path) == ["a blue dog", "a red house"]


@pytest.mark.parametrize(
    ("text", "words"), [(None, "CAPTIONS: cannot read"), ("", "holds no prompt")]
)
def test_what_holds_no_prompts_is_refused(model, tmp_path, capsys, text, words):
    """Exit code 2 and one line."""
    path = tmp_path / "prompts.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as caught:
        main([str(path), str(model), str(tmp_path / "out")])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_a_folder_without_a_text_encoder_is_refused(tmp_path, capsys):
    """Exit code 2 and one line that names the folder."""
    (tmp_path / "prompts.txt").write_text("dog")
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "prompts.txt"), str(tmp_path), str(tmp_path / "out")])
    assert caught.value.code == 2
    assert f"cannot read tokenizer and text_encoder of {tmp_path}" in capsys.readouterr().err
