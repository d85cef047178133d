"""Write the table of sizes into the README: `python plugins/backbones/tests/record_sizes.py`."""

from __future__ import annotations

from pathlib import Path

import tomli

from advdiff_core.discovery import scan
from advdiff_core.engine.size import macs_of, macs_words, parameters_of
from advdiff_core.interfaces.component import Build
from advdiff_core.testing.subject import read_settings
from advdiff_core.types import DataInfo, Domain

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- sizes: written by tests/record_sizes.py -->", "<!-- sizes end -->"

#: What it is, name, keys as a recipe writes them, shape of a sample, classes.
NETWORKS = (
    ("AT_Diff, CIFAR-10", "adm-unet", "learn_sigma = true", (3, 32, 32), 0),
    (
        "ADM, ImageNet 64x64", "adm-unet",
        "channels = 192, channel_mult = [1, 2, 3, 4], attention = [32, 16, 8], head_channels = 64, "
        'attention_split = "parts-first", learn_sigma = true, conditional = true',
        (3, 64, 64), 1000,
    ),
    (
        "improved DDPM, CIFAR-10", "adm-unet",
        "heads = 4, resample_blocks = false, learn_sigma = true", (3, 32, 32), 0,
    ),
    (
        "EDM, CIFAR-10", "ddpmpp-unet", "conditional = true, augment_dim = 9", (3, 32, 32), 10,
    ),
    ("DiT-S/2", "dit", "learn_sigma = true, conditional = true", (4, 32, 32), 1000),
    (
        "DiT-XL/2", "dit",
        "width = 1152, depth = 28, heads = 16, learn_sigma = true, conditional = true",
        (4, 32, 32), 1000,
    ),
    (
        "LightningDiT-XL/1", "dit",
        "width = 1152, depth = 28, heads = 16, patch = 1, "
        'norm = "rms", mlp = "swiglu", rope = true, conditional = true',
        (32, 16, 16), 1000,
    ),
    ("WRN-28-10", "wide-resnet", "", (3, 32, 32), 10),
    ("PreAct ResNet-18", "preact-resnet18", "", (3, 32, 32), 10),
)  # fmt: skip


def row(what: str, use: str, keys: str, shape: tuple[int, ...], classes: int) -> str:
    """One line of the table."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    data = DataInfo(shape=shape, count=1, domain=Domain(-1.0, 1.0), classes=classes)
    table = {"use": f"advdiff-backbones:{use}", **tomli.loads(f"x = {{ {keys} }}")["x"]}
    catalogue = scan()
    entry, _ = catalogue.resolve("backbone", table["use"])
    settings = read_settings(catalogue, "backbone", table)
    with FakeTensorMode():
        net = catalogue.load(entry)(settings, Build(path="models.student", data=data))
    macs = macs_of(net, "backbone", data)
    assert macs is not None
    size = "x".join(map(str, shape))
    told = f"`{keys}`" if keys else "defaults"
    return f"| {what} | `{use}` | {told} | {size} | {parameters_of(net):,} | {macs_words(macs)} |"


def table() -> str:
    """The table between its markers."""
    head = (
        "| network | component | settings | sample | parameters | one forward |",
        "| --- | --- | --- | --- | --- | --- |",
    )
    return "\n".join([BEGIN, *head, *(row(*network) for network in NETWORKS), END])


def written(readme: str) -> str:
    """The table that a README holds."""
    return readme[readme.index(BEGIN) : readme.index(END) + len(END)]


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    README.write_text(text.replace(written(text), table()), encoding="utf-8")
