"""`advdiff import`: every format to one folder, names fitted, the result taken by `init`."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from attrs import evolve
from helpers_foreign import edm_bytes, torch_bytes
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from advdiff_core import Backbone, BackboneOutput, Build
from advdiff_core.cli import main
from advdiff_core.discovery import scan
from advdiff_core.engine.api import train
from advdiff_core.engine.fsio import FileSystem
from advdiff_core.engine.importing.fit import best_fit, fitted
from advdiff_core.engine.importing.folder import read_folder, write_folder
from advdiff_core.engine.importing.golden import Golden, check_golden, make_golden, moved_domain
from advdiff_core.engine.importing.run import Target, import_checkpoint
from advdiff_core.engine.importing.target import named_target, role_target
from advdiff_core.engine.initial import load_init
from advdiff_core.engine.manifest import read_manifest
from advdiff_core.engine.trained import trained_on
from advdiff_core.errors import DataError, StorageError, UsageError
from advdiff_core.recipe import load_recipe, recipe_from_dict
from advdiff_core.types import DataInfo, Domain

IMAGES = DataInfo(shape=(1, 8, 8), count=1, domain=Domain(-1.0, 1.0), classes=3)
SMALL = ("channels=8", "channel_mult=[1]", "blocks=1", "attention=[8]", "head_channels=4")
ARGUMENTS = (
    "--use", "unet", "--shape", "1x8x8", "--classes", "3",
    *(part for text in SMALL for part in ("-s", text)),
)  # fmt: skip


class Done(NamedTuple):
    """What a command line did."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Done]:
    """Run `advdiff import` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Done:
        code = main(["import", *map(str, args)])
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Weights of a small U-Net that nobody drew: a file of them is unlike a fresh network."""
    network = named_target("unet", SMALL, IMAGES, scan()).network
    numbers = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(t.shape, generator=numbers) * 0.6
        for name, t in network.state_dict().items()
    }


def named(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with a prefix before every name."""
    return {prefix + name: tensor for name, tensor in state.items()}


def safetensors_file(folder: Path, state: dict[str, Tensor]) -> Path:
    """As timm and diffusers write them."""
    save_file(state, folder / "model.safetensors")
    return folder / "model.safetensors"


def sharded(folder: Path, state: dict[str, Tensor]) -> Path:
    """As large models of diffusers come: several files and an index."""
    names = list(state)
    half = {"m-1.safetensors": names[::2], "m-2.safetensors": names[1::2]}
    for file, part in half.items():
        save_file({name: state[name] for name in part}, folder / file)
    places = {name: file for file, part in half.items() for name in part}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def saved(make: Callable[[dict[str, Tensor]], bytes]) -> Callable[[Path, dict[str, Tensor]], Path]:
    """A file with the bytes that `make` gives."""

    def write(folder: Path, state: dict[str, Tensor]) -> Path:
        (folder / "file.pt").write_bytes(make(state))
        return folder / "file.pt"

    return write


FORMATS: dict[str, tuple[Callable[[Path, dict[str, Tensor]], Path], str, str, str]] = {
    "timm": (safetensors_file, "safetensors", "", ""),
    "diffusers": (sharded, "sharded safetensors", "", ""),
    "guided-diffusion": (saved(torch_bytes), "torch zip", "", ""),
    "before 1.6": (saved(lambda s: torch_bytes(s, legacy=True)), "torch legacy", "", ""),
    "dm-at": (
        saved(lambda s: torch_bytes({"model_state_dict": named("module.0.", s), "epoch": 3})),
        "torch zip", "model_state_dict", "module.0.",
    ),
    "lightning": (
        saved(lambda s: torch_bytes({"state_dict": named("net._orig_mod.", s), "epoch": 1})),
        "torch zip", "state_dict", "net._orig_mod.",
    ),
    "averaged": (
        saved(lambda s: torch_bytes({**named("module.", s), "n_averaged": torch.tensor(7)})),
        "torch zip", "", "module.",
    ),
    "edm": (saved(lambda s: edm_bytes(s, Path("marker"))), "pickle", "ema", "model."),
    "edm, protocol 0": (
        saved(lambda s: edm_bytes(s, Path("marker"), 0)), "pickle", "ema", "model.",
    ),
    "numpy": (
        saved(lambda s: pickle.dumps({"params": {k: v.numpy() for k, v in s.items()}})),
        "pickle", "params", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(FORMATS))
def test_import_takes_every_format(
    cli: Callable[..., Done], tmp_path: Path, state: dict[str, Tensor], name: str
) -> None:
    """The tensors come out bit for bit, under the network's names; the facts say from where."""
    write, kind, key, prefix = FORMATS[name]
    file = write(tmp_path, state)
    done = cli(file, *ARGUMENTS, "--out", "out", "--json")
    assert (done.code, done.err) == (0, "")
    facts = json.loads(done.out)
    assert facts["source"]["format"] == kind
    assert (facts["source"]["key"], facts["fit"]["prefix"]) == (key, prefix)
    assert facts["source"]["file"] == file.name
    assert facts["dtypes"] == {"float32": len(state)}
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert set(found) == set(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert not (tmp_path / "marker").exists()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "golden.safetensors", "model.json", "model.safetensors",
    }  # fmt: skip


def test_import_says_what_it_did(
    cli: Callable[..., Done], tmp_path: Path, state: dict[str, Tensor]
) -> None:
    """For people: what, from where, which names, and the table of a recipe that takes it."""
    file = FORMATS["dm-at"][0](tmp_path, state)
    done = cli(file, *ARGUMENTS, "--out", "out")
    lines = done.out.splitlines()
    count = sum(tensor.numel() for tensor in state.values())
    assert lines[:4] == [
        f"out: unet, {count:,} parameters",
        f"  from {file} (torch zip, key model_state_dict): tensors {len(state)} float32, "
        "kept as they are",
        "  names: prefix module.0. removed",
        "  golden forward of the network itself, to be compared whenever the weights are loaded",
    ]
    assert lines[4:6] == ["  in a recipe:", "    [models.student]"]
    assert '    init = "out"' in lines
    assert "    head_channels = 4" in lines


def test_import_records_edm_settings(
    cli: Callable[..., Done], tmp_path: Path, state: dict[str, Tensor]
) -> None:
    """What the pickle says its networks were made with is kept."""
    file = FORMATS["edm"][0](tmp_path, state)
    facts = json.loads(cli(file, *ARGUMENTS, "--out", "out", "--json").out)
    assert facts["source"]["config"] == {
        ".": {
            "class": "EDMPrecond", "img_resolution": 32, "label_dim": 10,
            "model_type": "SongUNet",
        },
        "model": {"class": "SongUNet", "channel_mult": [2, 2, 2], "model_channels": 128},
    }  # fmt: skip
    assert facts["model"]["use"] == "unet"
    assert facts["data"] == {"shape": [1, 8, 8], "classes": 3, "domain": [-1.0, 1.0]}


def test_import_wants_a_key_where_several_weights_fit(
    cli: Callable[..., Done], tmp_path: Path, state: dict[str, Tensor]
) -> None:
    """The average and the raw weights both fit: a person has to choose."""
    average = {name: tensor + 1 for name, tensor in state.items()}
    value = {"model": state, "ema": average, "opt": {"state": {0: {"exp_avg": torch.ones(3)}}}}
    file = saved(torch_bytes)(tmp_path, value)
    done = cli(file, *ARGUMENTS, "--out", "out")
    assert done.code == 2
    assert done.err == (
        f"advdiff: error {file}: holds several weights that fit: model, ema - choose one, for "
        "example --key model\n"
    )
    assert cli(file, *ARGUMENTS, "--out", "out", "--key", "ema").code == 0
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], average[name]) for name in state)
    done = cli(file, *ARGUMENTS, "--out", "other", "--key", "emma")
    assert (done.code, done.err) == (
        4, f"advdiff: error[S12] {file}: holds no weights under 'emma' - did you mean 'ema'?\n",
    )  # fmt: skip
    done = cli(file, *ARGUMENTS, "--out", "other", "--key", "x/y")
    assert done.err.endswith("holds no weights under 'x/y' - it has model, ema\n")


def test_import_lists_what_does_not_fit(
    cli: Callable[..., Done], tmp_path: Path, state: dict[str, Tensor]
) -> None:
    """Missing with the nearest name, unexpected, different; --json has them all."""
    names = list(state)
    wrong = dict(state)
    wrong[f"{names[0]}s"] = wrong.pop(names[0])
    wrong[names[1]] = torch.ones(1, 2, 3)
    wrong |= {f"head.{n}": torch.ones(1) for n in range(7)}
    file = safetensors_file(tmp_path, wrong)
    done = cli(file, *ARGUMENTS, "--out", "out", "--json")
    assert done.code == 4
    assert len(done.err.splitlines()) == 1
    assert f"missing: {names[0]} (it has {names[0]}s)" in done.err
    assert f"unexpected: {names[0]}s, head.0, head.1, head.2, head.3 and 3 more" in done.err
    wanted = list(state[names[1]].shape)
    assert f"{names[1]} is float32 [1, 2, 3] instead of float32 {wanted}" in done.err
    assert done.err.endswith(
        " - give the settings (-s) the weights were made with, or --key; --json lists all names\n"
    )
    listed = json.loads(done.out)
    assert listed["matched"] == len(state) - 2
    assert listed["missing"] == [names[0]]
    assert listed["unexpected"] == [f"{names[0]}s", *(f"head.{n}" for n in range(7))]
    assert [one["name"] for one in listed["different"]] == [names[1]]
    assert not (tmp_path / "out").exists()


def test_import_leaves_out_what_it_is_told_to(
    cli: Callable[..., Done], tmp_path: Path, state: dict[str, Tensor]
) -> None:
    """--drop takes patterns; what was left out is written down."""
    file = safetensors_file(tmp_path, {**named("module.", state), "aux.w": torch.ones(1)})
    assert cli(file, *ARGUMENTS, "--out", "out").code == 4
    done = cli(file, *ARGUMENTS, "--out", "out", "--drop", "aux.*", "--json")
    assert json.loads(done.out)["fit"]["dropped"] == ["aux.w"]


def test_import_keeps_half_precision_and_init_casts_it(
    cli: Callable[..., Done], tmp_path: Path, state: dict[str, Tensor]
) -> None:
    """The file stays as small as it was; the network computes in its own type."""
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    assert cli(safetensors_file(tmp_path, half), *ARGUMENTS, "--out", "out").code == 0
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    network = named_target("unet", SMALL, IMAGES, scan()).network
    load_init(network, "student", tmp_path / "out", IMAGES)
    assert all(torch.equal(t, half[n].float()) for n, t in network.state_dict().items())


def test_import_refuses_integers_for_weights(
    cli: Callable[..., Done], tmp_path: Path, state: dict[str, Tensor]
) -> None:
    """A cast would hide that they are quantised, with a scale somewhere else."""
    wrong = {name: tensor.to(torch.int8) for name, tensor in state.items()}
    done = cli(safetensors_file(tmp_path, wrong), *ARGUMENTS, "--out", "out")
    assert done.code == 4
    assert "is int8 [" in done.err


def test_import_refuses_weights_that_are_not_finite(
    cli: Callable[..., Done], tmp_path: Path, state: dict[str, Tensor]
) -> None:
    """One NaN makes every output NaN."""
    name = list(state)[2]
    wrong = {**state, name: state[name].clone().index_fill_(0, torch.tensor([0]), torch.nan)}
    done = cli(safetensors_file(tmp_path, wrong), *ARGUMENTS, "--out", "out")
    assert (done.code, f"{name}: holds NaN or infinity" in done.err) == (4, True)


def test_import_never_overwrites(
    cli: Callable[..., Done], tmp_path: Path, state: dict[str, Tensor]
) -> None:
    """S10: something at --out is left alone."""
    (tmp_path / "out").mkdir()
    done = cli(safetensors_file(tmp_path, state), *ARGUMENTS, "--out", "out")
    assert (done.code, "error[S10] out: there is something here already" in done.err) == (5, True)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ([], "advdiff: error advdiff import: found neither --use nor --recipe - name the network "
             "by --use BACKBONE, or by --recipe RECIPE --role ROLE"),
        (["--use", "mlp", "--recipe", "r.toml"],
         "advdiff: error advdiff import: found both --use and --recipe - name the network by --use "
         "BACKBONE, or by --recipe RECIPE --role ROLE"),
        (["--use", "mlp", "--shape", "3,32"],
         "advdiff: error --shape: found '3,32', wanted sizes such as 3x32x32 - write channels, "
         "height, width"),
        (["--use", "mlp", "--domain", "1", "0"],
         "advdiff: error --domain: found 1 0, wanted a low and a higher number - write for example "
         "--domain 0 1"),
        (["--use", "ulet"],
         "advdiff: error[R11] models.imported.use: no installed distribution offers a backbone "
         "'ulet' - did you mean 'unet'?"),
        (["--use", "unet", "-s", "chanels=3"],
         "advdiff: error[R06] -s: models.imported.chanels: unknown key (advdiff-core) - did you "
         "mean 'channels'?"),
    ],
)  # fmt: skip
def test_import_refuses_wrong_options(cli: Callable[..., Done], args: list[str], line: str) -> None:
    """One line each."""
    done = cli("file.pt", *args, "--out", "out")
    assert (done.code, done.err.splitlines()) == (2, [line])


def test_import_says_that_a_file_holds_no_weights(cli: Callable[..., Done], tmp_path: Path) -> None:
    """A pickle of something else."""
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"epoch": 3, "scores": [1.0, 2.0]}))
    done = cli("x.pkl", *ARGUMENTS, "--out", "out")
    assert (done.code, "holds no tensor with a name" in done.err) == (4, True)


def test_import_of_shards_wants_them_all(
    cli: Callable[..., Done], tmp_path: Path, state: dict[str, Tensor]
) -> None:
    """A missing shard, and one with other tensors than the index says."""
    index = sharded(tmp_path, state)
    save_file({"other": torch.ones(1)}, tmp_path / "m-2.safetensors")
    done = cli(index, *ARGUMENTS, "--out", "out")
    assert "m-2.safetensors: its tensors are not those of model.safetensors.index.json" in done.err
    (tmp_path / "m-2.safetensors").unlink()
    done = cli(index, *ARGUMENTS, "--out", "out")
    assert (done.code, "m-2.safetensors: the file is missing" in done.err) == (4, True)


def recipe_of(init: Path | str, **model: Any) -> dict[str, Any]:
    """A recipe of the small U-Net on pictures in a file of its own."""
    return {
        "run": {"images": 4, "batch": 2, "name": "taken"},
        "data": {"use": "tensor-file", "path": "images.safetensors", "images": "x", "labels": "y"},
        "models": {
            "student": {
                "use": "unet", "channels": 8, "channel_mult": [1], "blocks": 1, "attention": [8],
                "head_channels": 4, "init": str(init), **model,
            }
        },
        "terms": {"denoise": {"use": "denoise"}},
        "sample": {"use": "ddim", "steps": 2, "images": 2},
    }  # fmt: skip


@pytest.fixture
def taken(cli: Callable[..., Done], tmp_path: Path, state: dict[str, Tensor]) -> Path:
    """An imported model beside a file of pictures."""
    images = torch.randint(0, 256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    save_file({"x": images.byte(), "y": labels}, tmp_path / "images.safetensors")
    assert cli(safetensors_file(tmp_path, state), *ARGUMENTS, "--out", "out").code == 0
    return tmp_path / "out"


def test_import_by_recipe_takes_network_and_data_from_it(
    cli: Callable[..., Done], taken: Path, tmp_path: Path, state: dict[str, Tensor]
) -> None:
    """The same weights and the same forward as by name."""
    import tomli_w

    tables = recipe_of("gone")
    (tmp_path / "r.toml").write_text(tomli_w.dumps(tables))
    done = cli("model.safetensors", "--recipe", "r.toml", "--out", "again", "--json")
    assert (done.code, done.err) == (0, "")
    again, first = read_folder(tmp_path / "again"), read_folder(taken)
    assert again.facts["model"] == first.facts["model"]
    assert again.facts["data"] == first.facts["data"]
    assert torch.equal(again.golden.x, first.golden.x)
    done = cli("model.safetensors", "--recipe", "r.toml", "--role", "studnet", "--out", "x")
    assert (done.code, done.err) == (
        2, "advdiff: error --role: the recipe has no role 'studnet' - did you mean 'student'?\n",
    )  # fmt: skip


def test_training_starts_from_imported_weights_and_the_lock_names_them(
    taken: Path, tmp_path: Path, state: dict[str, Tensor]
) -> None:
    """The lock holds path, kind and SHA-256; other weights under the same path are refused."""
    target = role_target(recipe_from_dict(recipe_of("gone")), "student")
    import_checkpoint(tmp_path / "model.safetensors", tmp_path / "net", target)
    result = train(recipe_from_dict(recipe_of(tmp_path / "net")), out=tmp_path / "runs")
    frozen = load_recipe(result.run / "recipe.lock.toml")
    assert frozen.locked["student"] == {
        "path": str(tmp_path / "net"), "kind": "import", "golden": "equal",
        "sha256": read_folder(tmp_path / "net").sha256,
    }  # fmt: skip
    assert train(frozen, out=tmp_path / "runs").metrics == result.metrics
    (tmp_path / "net").rename(tmp_path / "old")
    other = {name: tensor + 0.01 for name, tensor in state.items()}
    save_file(other, tmp_path / "other.safetensors")
    import_checkpoint(tmp_path / "other.safetensors", tmp_path / "net", target)
    with pytest.raises(DataError, match=r"it was .* in the lock") as caught:
        train(frozen, out=tmp_path / "runs")
    assert (caught.value.code, caught.value.where) == ("S11", "models.student.init")
    assert caught.value.fix.endswith("remove [lock.init.student] from the recipe")


def test_imported_weights_say_what_they_were_trained_on(taken: Path) -> None:
    """A teacher of other images can then be told from one that fits."""
    data = read_folder(taken).facts["data"]
    found = trained_on(taken)
    assert found is not None
    assert (list(found.shape), found.classes) == (data["shape"], data["classes"])
    domain = found.domain
    assert (None if domain is None else [domain.low, domain.high]) == data["domain"]


def test_the_lock_names_a_run_that_weights_were_taken_from(tmp_path: Path) -> None:
    """By the digest of its checkpoint: a run that went on meanwhile is another beginning."""
    tables = {
        "run": {"images": 8, "batch": 4}, "data": {"use": "two-moons", "count": 8},
        "models": {"student": {"use": "mlp", "width": 8}}, "terms": {"denoise": {"use": "denoise"}},
        "sample": {"use": "ddim", "steps": 2, "images": 2},
    }  # fmt: skip
    first = train(recipe_from_dict(tables), out=tmp_path / "runs").run
    tables["models"]["student"]["init"] = str(first)
    second = train(recipe_from_dict(tables), out=tmp_path / "runs").run
    found = load_recipe(second / "recipe.lock.toml").locked["student"]
    manifest = read_manifest(first / "checkpoints" / "8")
    assert found == {"path": str(first), "kind": "run", "sha256": manifest.digest}


def test_golden_forward_names_noise_levels_that_differ(taken: Path) -> None:
    """A network that spreads them over their range means something else by each."""
    with pytest.raises(DataError) as caught:
        train(recipe_from_dict(recipe_of(taken)), out=taken.parent / "runs")
    assert caught.value.fix.startswith("it was imported with noise levels of [0.0, 1000.0], not [")
    assert caught.value.fix.endswith("; --recipe takes those of a recipe")


def test_init_takes_a_plain_safetensors_file(
    taken: Path, tmp_path: Path, state: dict[str, Tensor]
) -> None:
    """Strictly by the network's own names."""
    target = named_target("unet", SMALL, IMAGES, scan())
    found = load_init(target.network, "student", tmp_path / "model.safetensors", IMAGES)
    assert found["kind"] == "safetensors"
    assert found["sha256"] == read_folder(taken).facts["source"]["sha256"]
    assert all(torch.equal(t, state[n]) for n, t in target.network.state_dict().items())
    save_file(named("module.", state), tmp_path / "wrong.safetensors")
    with pytest.raises(DataError, match="missing: ") as caught:
        load_init(target.network, "student", tmp_path / "wrong.safetensors", IMAGES)
    assert caught.value.code == "S12"


def test_golden_forward_notices_settings_that_shapes_do_not_show(taken: Path) -> None:
    """Another number of heads has the same tensors and computes something else."""
    other = [*SMALL[:-1], "head_channels=8"]
    network = named_target("unet", other, IMAGES, scan()).network
    with pytest.raises(DataError, match="this network computes something else") as caught:
        load_init(network, "student", taken, IMAGES)
    assert caught.value.code == "S11"
    assert caught.value.fix == "it was imported with head_channels = 4, not 8"


def test_golden_forward_is_not_run_on_data_of_another_shape(tmp_path: Path) -> None:
    """A network for any size takes its weights; the lock says that nothing was compared."""
    plain = [*SMALL[:3], "attention=[]"]
    target = named_target("unet", plain, IMAGES, scan())
    save_file(target.network.state_dict(), tmp_path / "plain.safetensors")
    import_checkpoint(tmp_path / "plain.safetensors", tmp_path / "out", target)
    larger = evolve(IMAGES, shape=(1, 16, 16))
    network = named_target("unet", plain, larger, scan()).network
    found = load_init(network, "student", tmp_path / "out", larger)
    assert found["golden"] == "not run: the data have another shape"


@pytest.mark.parametrize("name", ["model.safetensors", "golden.safetensors", "model.json"])
def test_imported_folder_notices_damage(taken: Path, name: str) -> None:
    """S01, S02: any flipped bit, any missing file."""
    data = (taken / name).read_bytes()
    network = named_target("unet", SMALL, IMAGES, scan()).network
    for place in random.Random(0).sample(range(len(data)), 40):
        changed = bytearray(data)
        changed[place] ^= 4
        (taken / name).write_bytes(changed)
        with pytest.raises(DataError) as caught:
            read_folder(taken)
        assert caught.value.code in ("S01", "S11", "S15")
        assert name in caught.value.where
    if name != "model.json":
        (taken / name).unlink()
        with pytest.raises(DataError, match="missing"):
            load_init(network, "student", taken, IMAGES)


def test_imported_folder_of_a_later_format_is_named(taken: Path) -> None:
    """S11."""
    text = (taken / "model.json").read_text().replace('"format":1', '"format":9')
    (taken / "model.json").write_text(text)
    with pytest.raises(DataError, match="has format 9; this advdiff reads format 1"):
        read_folder(taken)
    (taken / "model.json").write_text("[]")
    with pytest.raises(DataError, match="is not the JSON of an imported model"):
        read_folder(taken)


@pytest.mark.parametrize("operation", ["mkdir", "open", "write", "fsync", "sync_dir", "rename"])
def test_a_failing_disk_leaves_nothing_behind(
    tmp_path: Path, state: dict[str, Tensor], operation: str
) -> None:
    """S04: no folder, no temporary folder."""

    class Failing(FileSystem):
        def before(self, name: str, path: Path) -> None:
            if name == operation:
                raise OSError(5, "Input/output error")

    golden = Golden(x=torch.ones(1), c_noise=None, labels=None, output=torch.ones(1))
    with pytest.raises(StorageError) as caught:
        write_folder(tmp_path / "out", state, golden, {}, fs=Failing())
    assert caught.value.code == "S04"
    assert [path.name for path in tmp_path.iterdir()] == []


def test_expected_output_of_the_original_is_compared_and_kept(
    cli: Callable[..., Done], tmp_path: Path, state: dict[str, Tensor]
) -> None:
    """--expect: what the original code computes decides, and becomes the golden forward."""
    target = named_target("unet", SMALL, IMAGES, scan())
    target.network.load_state_dict(state)
    golden = make_golden(target.network, IMAGES, c_noise=(0.0, 900.0), denoiser=True)
    golden = evolve(golden, x=golden.x.contiguous())
    save_file(golden.tensors(), tmp_path / "expect.safetensors")
    file = safetensors_file(tmp_path, state)
    done = cli(file, *ARGUMENTS, "--out", "out", "--expect", "expect.safetensors")
    assert (done.code, "golden forward of --expect expect.safetensors" in done.out) == (0, True)
    assert torch.equal(read_folder(tmp_path / "out").golden.output, golden.output)
    save_file({**golden.tensors(), "output": golden.output * 1.01}, tmp_path / "no.safetensors")
    done = cli(file, *ARGUMENTS, "--out", "no", "--expect", "no.safetensors")
    assert done.code == 4
    assert "error[S11] no.safetensors: the golden forward differs by 0.0099" in done.err
    assert not (tmp_path / "no").exists()
    save_file({"x": golden.x}, tmp_path / "less.safetensors")
    done = cli(file, *ARGUMENTS, "--out", "no", "--expect", "less.safetensors")
    assert "error[S12] less.safetensors: holds x, wanted x and output" in done.err
    save_file(
        {**golden.tensors(), "x": golden.x[:, :, :3].contiguous()}, tmp_path / "odd.safetensors"
    )
    done = cli(file, *ARGUMENTS, "--out", "no", "--expect", "odd.safetensors")
    assert (done.code, "error[S11]" in done.err) == (4, True)


class Classifier(Backbone):
    """Normalises by the domain of its data; joins what others keep apart."""

    def __init__(self, data: DataInfo) -> None:
        super().__init__(self.Settings(), Build(data=data))
        self.joined = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        assert data.domain is not None
        self.domain = data.domain

    @property
    def taps(self) -> Mapping[str, Any]:
        """None."""
        return {}

    def forward(self, x, c_noise=None, labels=None, *, taps=(), stop_at=None) -> BackboneOutput:
        """Logits [B, 6]."""
        unit = (x - self.domain.low) / self.domain.span
        return BackboneOutput(self.norm(self.joined(unit.flatten(1))), {})

    def translate(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """`q` and `k` of the other program are rows of `joined` [B, ...]."""
        if "q.weight" not in state:
            return state
        rest = {name: t for name, t in state.items() if name[:2] not in ("q.", "k.")}
        for part in ("weight", "bias"):
            rest[f"joined.{part}"] = torch.cat([state[f"q.{part}"], state[f"k.{part}"]])
        return rest


TINY = DataInfo(shape=(1, 2, 2), count=1, domain=Domain(-1.0, 1.0), classes=6)


def classifier_target() -> Target:
    """The classifier, drawn anew."""
    return Target(
        network=Classifier(TINY), settings={"use": "toy"}, data=TINY, c_noise=(0.0, 1.0),
        denoiser=None,
    )  # fmt: skip


def foreign_classifier() -> dict[str, Tensor]:
    """Its weights in another program, wrapped, from before torch counted batches."""
    network = Classifier(TINY)
    state = {n: t.clone() for n, t in network.state_dict().items()}
    joined = {part: state.pop(f"joined.{part}") for part in ("weight", "bias")}
    del state["norm.num_batches_tracked"]
    for part, tensor in joined.items():
        state |= {f"q.{part}": tensor[:3].clone(), f"k.{part}": tensor[3:].clone()}
    return named("module.body.", state)


def test_a_backbone_translates_foreign_names(tmp_path: Path) -> None:
    """Behind prefixes of wrappers; counters of batches may be absent."""
    foreign = foreign_classifier()
    save_file(foreign, tmp_path / "f.safetensors")
    target = classifier_target()
    facts = import_checkpoint(tmp_path / "f.safetensors", tmp_path / "out", target)
    assert facts["fit"]["prefix"] == "module.body."
    assert facts["fit"]["as_built"] == ["norm.num_batches_tracked"]
    assert facts["classifier"] is True
    wanted = torch.cat([foreign["module.body.q.weight"], foreign["module.body.k.weight"]])
    assert torch.equal(read_folder(tmp_path / "out").tensors["joined.weight"], wanted)


def test_golden_images_of_a_classifier_move_with_the_domain(tmp_path: Path) -> None:
    """The same pictures in [0, 1] give the same logits; a denoiser's input is no picture."""
    save_file(foreign_classifier(), tmp_path / "f.safetensors")
    import_checkpoint(tmp_path / "f.safetensors", tmp_path / "out", classifier_target())
    unit = evolve(TINY, domain=Domain(0.0, 1.0))
    assert load_init(Classifier(unit), "c", tmp_path / "out", unit)["golden"] == "equal"
    golden = read_folder(tmp_path / "out").golden
    moved = moved_domain(golden, TINY.domain, unit.domain)
    torch.testing.assert_close(moved.x, golden.x / 2 + 0.5)
    noised = evolve(golden, c_noise=torch.ones(2))
    assert moved_domain(noised, TINY.domain, unit.domain) is noised


def test_golden_forward_leaves_the_network_as_it_was() -> None:
    """Modes, buffers and global random state."""
    network = Classifier(TINY)
    network.norm.eval()
    before = {n: t.clone() for n, t in network.state_dict().items()}
    seed = torch.get_rng_state()
    golden = make_golden(network, TINY, c_noise=(0.0, 1.0), denoiser=None)
    assert check_golden(network, golden, where="x", fix="") == 0.0
    assert network.training
    assert network.joined.training
    assert not network.norm.training
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), seed)
    assert golden.c_noise is None


def test_golden_forward_refuses_an_output_that_is_not_finite() -> None:
    """Weights that are finite can still overflow."""
    network = Classifier(TINY)
    nn.init.constant_(network.joined.weight, 3e38)
    with pytest.raises(DataError, match="is not finite"):
        make_golden(network, TINY, c_noise=(0.0, 1.0), denoiser=False)


def test_fit_adds_the_prefix_of_an_adapter() -> None:
    """A network that wraps a library's model has one more level than the library's file."""

    class Wrapped(Classifier):
        def __init__(self) -> None:
            super().__init__(TINY)
            self.model = nn.ModuleDict({"joined": self.joined, "norm": self.norm})
            del self.joined, self.norm

    network = Wrapped()
    plain = {n.removeprefix("model."): t for n, t in network.state_dict().items()}
    fit = best_fit(network, network.state_dict(), named("ema.", plain))
    assert (fit.whole, fit.prefix, fit.added) == (True, "ema.", "model.")
    assert set(fitted(network, named("ema.", plain), fit)) == set(network.state_dict())


def test_import_needs_a_backbone_role(taken: Path) -> None:
    """Weights are imported for networks with a forward to compare."""
    recipe = recipe_from_dict(recipe_of("gone"))
    model: Any = recipe.models["student"]
    odd = evolve(recipe, models={"student": evolve(model, kind="discriminator")})
    with pytest.raises(UsageError, match="is of kind discriminator, wanted a backbone"):
        role_target(odd, "student")
