"""From a file of another program to the folder of an imported model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor

from advdiff_core.engine.importing.fit import Fit, Mismatched, best_fit, fitted
from advdiff_core.engine.importing.folder import check_target, write_folder
from advdiff_core.engine.importing.golden import Golden, check_golden, make_golden
from advdiff_core.engine.importing.sources import MAX_FILE, Source, open_source
from advdiff_core.engine.importing.states import State, find_states, load_state, skeleton
from advdiff_core.engine.safe_read import read_bytes
from advdiff_core.engine.tensor_file import load_tensors
from advdiff_core.errors import DataError, UsageError, nearest
from advdiff_core.interfaces.backbone import Backbone
from advdiff_core.types import DataInfo

__all__ = ["Target", "copy_weights", "import_checkpoint", "persistent_state"]

_SHOWN = 12


@frozen(kw_only=True)
class Target:
    """The network that weights are imported for.

    Attributes:
        network: Built, on the CPU.
        settings: `use` and its settings as a recipe writes them.
        data: What its inputs are.
        c_noise: Range of its noise-level input.
        denoiser: False for a classifier; None if it is not known.
        owner: Distribution and version of the component.
    """

    network: Backbone
    settings: Mapping[str, Any]
    data: DataInfo
    c_noise: tuple[float, float]
    denoiser: bool | None
    owner: str = ""


def import_checkpoint(  # noqa: PLR0913 - one argument per option of the verb.
    path: Path,
    out: Path,
    target: Target,
    *,
    key: str | None = None,
    drop: Sequence[str] = (),
    expect: Path | None = None,
) -> dict[str, Any]:
    """Fit the weights of a file to a network and write them as a folder.

    Args:
        path: The file.
        out: The folder, which does not exist.
        target: The network.
        key: Which weights of several in the file, for example "ema".
        drop: Patterns of names in the file to leave out.
        expect: safetensors file with x and output (and c_noise, labels) of the original network.

    Returns:
        The content of `model.json`.

    Raises:
        DataError: If the file cannot be read, nothing in it fits, or the output is not as
            expected.
        UsageError: If several weights fit and no key was given.
        StorageError: If the folder cannot be written.
    """
    check_target(out)
    network = target.network
    with open_source(path) as source:
        state, fit = _choose(source, target, key, drop)
        size = path.stat().st_size + sum(
            (path.parent / name).stat().st_size for name in source.files
        )
        kept = {name: leaf for name, leaf in state.tensors.items() if name not in fit.dropped}
        raw = load_state(evolve(state, tensors=kept), size=size, where=str(path))
    # A translation may give views; the file holds plain tensors.
    tensors = {name: t.contiguous() for name, t in fitted(network, raw, fit).items()}
    _check_finite(tensors, str(path))
    copy_weights(network, tensors)
    tensors |= {name: persistent_state(network)[name].detach().clone() for name in fit.filled}
    golden = _golden(target, expect)
    facts = _facts(source, state, fit, target, raw) | {"golden": _golden_facts(golden, expect)}
    facts["classifier"] = golden.c_noise is None
    return write_folder(out, tensors, golden, facts)


def persistent_state(network: Backbone) -> dict[str, Tensor]:
    """The tensors that a network is saved with, by name: the live ones."""
    return dict(network.state_dict(keep_vars=True))


def copy_weights(network: Backbone, tensors: Mapping[str, Tensor]) -> None:
    """Give a network the weights of these names, any shape, cast to its own data types."""
    state = persistent_state(network)
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


def _choose(
    source: Source, target: Target, key: str | None, drop: Sequence[str]
) -> tuple[State, Fit]:
    """The weights of the file that fit the network."""
    where = str(source.path)
    states = _candidates(find_states(source.tree, where), key, where)
    expected = persistent_state(target.network)
    fits = [best_fit(target.network, expected, skeleton(one, where), drop) for one in states]
    whole = [pair for pair in zip(states, fits, strict=True) if pair[1].whole]
    if len(whole) > 1:
        names = ", ".join(one.key or "(all of it)" for one, _ in whole)
        message = f"holds several weights that fit: {names}"
        fix = f"choose one, for example --key {whole[0][0].key}"
        raise UsageError(message, where=where, fix=fix)
    if whole:
        return whole[0]
    state, fit = max(zip(states, fits, strict=True), key=lambda pair: pair[1].rank)
    place = f"{where}: {state.key}" if state.key else where
    raise Mismatched(fit, f"{place} for {target.settings.get('use')}")


def _candidates(states: list[State], key: str | None, where: str) -> list[State]:
    keys = [one.key for one in states]
    if not states:
        fix = "give a file of a state dict, or of a model"
        raise DataError("holds no tensor with a name", code="S12", where=where, fix=fix)
    if key is None:
        return states
    if key not in keys:
        near = nearest(key, keys)
        known = ", ".join(keys[:_SHOWN]) or "none"
        fix = f"did you mean {near!r}?" if near else f"it has {known}"
        raise DataError(f"holds no weights under {key!r}", code="S12", where=where, fix=fix)
    return [one for one in states if one.key == key]


def _check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            message = "holds NaN or infinity"
            fix = "these weights are broken; fetch the file again or take an earlier one"
            raise DataError(message, code="S12", where=f"{where}: {name}", fix=fix)


def _golden(target: Target, expect: Path | None) -> Golden:
    """A forward of the network, or that of the original, which it has to agree with."""
    if expect is None:
        return make_golden(
            target.network, target.data, c_noise=target.c_noise, denoiser=target.denoiser
        )
    data = read_bytes(expect, limit=MAX_FILE)
    golden = Golden.of(load_tensors(data, where=str(expect)), str(expect))
    fix = "the weights fit by name and shape alone: check the settings (-s) against the original"
    check_golden(target.network, golden, where=str(expect), fix=fix)
    return golden


def _golden_facts(golden: Golden, expect: Path | None) -> dict[str, Any]:
    output = golden.output.float()
    return {
        "source": "the network itself" if expect is None else f"--expect {expect.name}",
        "shape": list(output.shape),
        "mean": float(output.mean()),
        "std": float(output.std(unbiased=False)),
        "first": output.flatten()[:4].tolist(),
    }


def _facts(
    source: Source, state: State, fit: Fit, target: Target, raw: Mapping[str, Tensor]
) -> dict[str, Any]:
    domain = target.data.domain
    return {
        "source": {
            "file": source.path.name, "format": source.format, "sha256": source.sha256,
            "shards": source.files, "key": state.key, "config": state.config,
        },
        "fit": {
            "tensors": fit.matched, "prefix": fit.prefix, "added": fit.added,
            "dropped": list(fit.dropped), "as_built": list(fit.filled),
        },
        "dtypes": dict(Counter(str(t.dtype).removeprefix("torch.") for t in raw.values())),
        "parameters": sum(p.numel() for p in target.network.parameters()),
        "model": dict(target.settings),
        "owner": target.owner,
        "data": {
            "shape": list(target.data.shape), "classes": target.data.classes,
            "domain": None if domain is None else [domain.low, domain.high],
        },
        "c_noise": list(target.c_noise),
        "advdiff_core": metadata.version("advdiff-core"),
    }  # fmt: skip
