"""State of a torch optimizer by the names of its parameters, exact in dtype.

torch numbers parameters by their order and casts loaded moments to the parameter's dtype; both
would resume a changed model without a word. Here a state belongs to a name, and keeps its own
dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from advdiff_core.engine.sharding import like
from advdiff_core.errors import ContractError, DataError

__all__ = ["load_optimizer_state", "optimizer_state"]

#: Options that say how this machine computes, not what: the current optimizer's stay.
_MACHINE = ("foreach", "fused", "capturable", "differentiable")


def optimizer_state(
    optimizer: Optimizer, named: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, Any]:
    """The state of `optimizer`, keyed by parameter name, in types the codec stores.

    Args:
        optimizer: Any torch optimizer whose `state_dict()` follows torch's form.
        named: `(name, parameter)` of all its parameters.

    Returns:
        `state` (per name, for example `exp_avg` and the 0-d `step` of Adam), `groups` (options and
        `names`), `shapes` (per name), and `extra` (further keys of `state_dict()`).

    Raises:
        ContractError: K01 if the optimizer holds a parameter that `named` lacks.
    """
    order = _names_in_order(optimizer, dict(named))
    packed = optimizer.state_dict()
    flat = [name for group in order for name in group]
    return {
        "state": {flat[index]: _plain(state) for index, state in packed["state"].items()},
        "groups": [
            {
                **{key: _plain(value) for key, value in group.items() if key != "params"},
                "names": names,
            }
            for group, names in zip(packed["param_groups"], order, strict=True)
        ],
        "shapes": {
            name: list(parameter.shape)
            for group, names in zip(optimizer.param_groups, order, strict=True)
            for name, parameter in zip(names, group["params"], strict=True)
        },
        "extra": {k: _plain(v) for k, v in packed.items() if k not in {"state", "param_groups"}},
    }


def load_optimizer_state(
    optimizer: Optimizer,
    named: Iterable[tuple[str, nn.Parameter]],
    state: Mapping[str, Any],
    *,
    where: str,
) -> None:
    """Put a state made by `optimizer_state` into `optimizer`.

    Options (learning rate, betas, decay) become those of the state, but for the ones that say how a
    machine computes (foreach, fused, capturable, differentiable). Tensors keep their stored dtype
    and move to the device of their parameter.

    Args:
        optimizer: Made by the same recipe, over the same parameters in the same groups.
        named: `(name, parameter)` of all its parameters.
        state: The stored state.
        where: Checkpoint and player, for messages.

    Raises:
        ContractError: K01 if the optimizer holds a parameter that `named` lacks.
        DataError: S12 naming what differs: groups, names, shapes or options.
    """
    known = dict(named)
    order = _names_in_order(optimizer, known)
    if not {"state", "groups", "shapes", "extra"} <= set(state):
        raise DataError("is not the state of an optimizer", code="S12", where=where)
    _check_groups(optimizer, order, state, where)
    _check_shapes(known, state, where)
    entries = {
        name: {
            key: like(value, known[name]) if isinstance(value, Tensor) else value
            for key, value in entry.items()
        }
        for name, entry in state["state"].items()
    }
    index = {name: i for i, name in enumerate(name for group in order for name in group)}
    optimizer.load_state_dict(
        {
            **state["extra"],
            "state": {index[name]: dict(entry) for name, entry in entries.items()},
            "param_groups": [
                _packed_group(current, stored, index)
                for current, stored in zip(optimizer.param_groups, state["groups"], strict=True)
            ],
        }
    )
    for name, entry in entries.items():
        _restore_dtypes(optimizer.state[known[name]], entry)


def _names_in_order(optimizer: Optimizer, named: Mapping[str, nn.Parameter]) -> list[list[str]]:
    """Names of the parameters of each group."""
    by_id = {id(parameter): name for name, parameter in named.items()}
    try:
        return [[by_id[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    except KeyError:
        raise ContractError(
            "the optimizer holds a parameter that no model of its player has",
            code="K01",
            where=type(optimizer).__name__,
            fix="make the optimizer over the parameters it is given, and no others",
        ) from None


def _plain(value: Any) -> Any:
    """Tuples as lists, in any depth: JSON has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _check_groups(
    optimizer: Optimizer, order: list[list[str]], state: Mapping[str, Any], where: str
) -> None:
    stored = [group["names"] for group in state["groups"]]
    if stored != order:
        raise DataError(
            f"the optimizer has {_sizes(order)} and the checkpoint {_sizes(stored)}, "
            f"first different: {_first_difference(order, stored)}",
            code="S12",
            where=where,
            fix="resume with the recipe that wrote the checkpoint",
        )
    for current, group in zip(optimizer.param_groups, state["groups"], strict=True):
        unknown = sorted(set(group) - set(current) - {"names"})
        if unknown:
            message = f"the optimizer has no option {', '.join(unknown)}, which the checkpoint sets"
            fix = "resume with the optimizer and the torch version that wrote the checkpoint"
            raise DataError(message, code="S12", where=where, fix=fix)


def _sizes(groups: list[list[str]]) -> str:
    return f"groups of {', '.join(str(len(group)) for group in groups)} parameters"


def _first_difference(wanted: list[list[str]], found: list[list[str]]) -> str:
    ours = [name for group in wanted for name in group]
    theirs = [name for group in found for name in group]
    for one, other in zip(ours, theirs, strict=False):
        if one != other:
            return f"{one} here, {other} there"
    rest = ours[len(theirs) :] or theirs[len(ours) :]
    return rest[0] if rest else "the border between groups"


def _check_shapes(known: Mapping[str, nn.Parameter], state: Mapping[str, Any], where: str) -> None:
    for name, shape in state["shapes"].items():
        found = list(known[name].shape)
        if found != shape:
            message = f"{name} has shape {found} here and {shape} in the checkpoint"
            raise DataError(message, code="S12", where=where)


def _packed_group(
    current: Mapping[str, Any], stored: Mapping[str, Any], index: Mapping[str, int]
) -> dict[str, Any]:
    """A group as `load_state_dict` wants it: indices, tuples again, this machine's flags."""
    group = {key: value for key, value in current.items() if key != "params"}
    for key, value in stored.items():
        if key != "names" and key not in _MACHINE:
            group[key] = tuple(value) if isinstance(current[key], tuple) else value
    return {**group, "params": [index[name] for name in stored["names"]]}


def _restore_dtypes(loaded: dict[str, Any], stored: Mapping[str, Any]) -> None:
    for key, value in stored.items():
        current = loaded.get(key)
        if not isinstance(value, Tensor) or not isinstance(current, Tensor):
            continue
        if current.dtype != value.dtype:
            loaded[key] = value.to(current.device)
