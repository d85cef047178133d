"""Roles whose weights, gradients, optimizer state and averages are shared out to the processes.

By FSDP2 (`torch.distributed.fsdp.fully_shard`). Between steps a process holds its rows of every
parameter; in a step it holds them whole, since one step runs a network several times before the
backward, searches included: a network that gave its weights away after each forward got wrong
gradients where a search ran between a forward and its backward, and none at all under a penalty on
gradients of inputs.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from advdiff_core.errors import UsageError
from advdiff_core.interfaces.module import ModuleComponent
from advdiff_core.recipe import Recipe
from advdiff_core.step.scene import Role, swaps_parameters

__all__ = [
    "PIECES", "SHARDED", "is_sharded", "join", "like", "local", "put", "release", "shard",
    "share_out", "split", "whole",
]  # fmt: skip

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

#: Keys of a checkpoint's state: rows of this process by place, and the shape of the whole by place.
PIECES, SHARDED = "pieces", "sharded"
#: Parameters from which a block of a network is gathered on its own.
BLOCK_PARAMETERS = 100_000


def share_out(recipe: Recipe, roles: Mapping[str, Role], size: int, device: torch.device) -> None:
    """Share out the roles that ask for it, and those that follow one.

    Args:
        recipe: The recipe.
        roles: Its roles, on the device.
        size: Number of processes; all of them call this.
        device: The device.

    Raises:
        UsageError: R10 if a batch cannot be cut into equal shares: all processes have to run a
            network together, equally often; or if a network acts after its update
            (`ModuleComponent.updated`), for which it needs whole weights.
    """
    shared = {name for name, model in recipe.models.items() if model.shard}
    shared |= {n for n, m in recipe.models.items() if m.follow and m.follow.role in shared}
    if shared and recipe.run.batch % size:
        message = f"{min(shared)!r} is shared out to {size} processes, which need equal shares of"
        message += f" a batch; found {recipe.run.batch}"
        fix = f"take a multiple of {size}"
        raise UsageError(message, code="R10", where="run.batch", fix=fix)
    for name in sorted(shared):
        _check_still(name, roles[name].module)
    for name in sorted(shared):
        roles[name].skeleton = shard(roles[name].module, size, device)


def _check_still(name: str, module: nn.Module) -> None:
    if getattr(type(module), "updated", ModuleComponent.updated) is not ModuleComponent.updated:
        message = f"{name!r} works on its whole weights after each update, so they cannot be shared"
        fix = "take `shard` out of this model"
        raise UsageError(message, code="R10", where=f"models.{name}.shard", fix=fix)


def shard(module: nn.Module, size: int, device: torch.device) -> nn.Module:
    """Share a network's parameters out, in place; buffers stay with every process.

    Args:
        module: On the device.
        size: Number of processes; all of them call this.
        device: Its device.

    Returns:
        The same network without numbers, on the device "meta": what it is without the others.
    """
    # Here and below, and not above: half a second that only those wait for who need it.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # It warns of writing into outputs, which steps refuse, and after which a backward would not
    # gather: here it need not.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    skeleton = deepcopy(module).to("meta")
    mesh = init_device_mesh(device.type, (size,))
    for block in [*_blocks(module), module]:
        fully_shard(block, mesh=mesh, reshard_after_forward=False)
    for part in _sharded_parts([module]):
        # Losses are divided by the global batch already: gradients are summed.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
        part.set_reshard_after_backward(False)
    swaps_parameters(module)
    return skeleton


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Large members of module lists, which networks call one after the other."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    members = [member for part in lists for member in part]
    calls = [one for one in members if not isinstance(one, nn.ModuleList | nn.ModuleDict)]
    return [one for one in calls if sum(p.numel() for p in one.parameters()) >= BLOCK_PARAMETERS]


def _sharded_parts(modules: Sequence[nn.Module]) -> list[FSDPModule]:
    if not modules:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [part for module in modules for part in module.modules() if isinstance(part, FSDPModule)]


def release(modules: Sequence[nn.Module]) -> None:
    """Give up what a step gathered; gradients are those of the rows of this process then.

    Args:
        modules: Networks that are shared out.
    """
    for part in _sharded_parts(modules):
        part.reshard()


def is_sharded(tensor: object) -> TypeGuard[DTensor]:
    """Whether a tensor is shared out."""
    if type(tensor) in {Tensor, nn.Parameter} or not isinstance(tensor, Tensor):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """The rows [N, ...] of this process, the tensor's own memory; a plain tensor itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor [N, ...]; every process calls it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def like(full: Tensor, model: Tensor) -> Tensor:
    """A whole tensor [N, ...], shared out as another one of its shape is."""
    if not is_sharded(model) or full.shape != model.shape:
        return full
    from torch.distributed.tensor import DTensor

    rows = _rows(full, model).clone().to(model.device)
    return DTensor.from_local(
        rows, model.device_mesh, model.placements, run_check=False, shape=model.shape,
        stride=model.stride(),
    )  # fmt: skip


@torch.no_grad()
def put(target: Tensor, full: Tensor) -> None:
    """Copy a whole tensor [N, ...] into one that may be shared out."""
    if is_sharded(target):
        local(target).copy_(_rows(full, target))
    else:
        target.copy_(full)


def _rows(full: Tensor, model: DTensor) -> Tensor:
    """The rows of a whole tensor that are this process's: as `torch.chunk` cuts it, maybe none."""
    chunks = full.chunk(model.device_mesh.size(), 0)
    rank = model.device_mesh.get_local_rank()
    return chunks[rank] if rank < len(chunks) else full[:0]


def split(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A state without what is shared out, noting its shapes; and the rows of this process.

    Args:
        state: Nested dicts and lists.

    Returns:
        The state, with None in such places and their shapes under `SHARDED`; rows by place.
    """
    pieces: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}

    def walk(value: Any, place: tuple[str | int, ...]) -> Any:
        if is_sharded(value):
            key = json.dumps(place)
            pieces[key], shapes[key] = local(value).detach(), list(value.shape)
            return None
        if isinstance(value, Mapping):
            return {key: walk(one, (*place, key)) for key, one in value.items()}
        if isinstance(value, list):
            return [walk(one, (*place, index)) for index, one in enumerate(value)]
        return value

    plain = walk(state, ())
    return ({**plain, SHARDED: shapes} if shapes else plain), pieces


def join(state: dict[str, Any], pieces: list[Mapping[str, Tensor]]) -> None:
    """Put tensors together again that `split` took out, in place.

    Args:
        state: As `split` returned it.
        pieces: Rows by place, of each process in order of rank.
    """
    for key in state.pop(SHARDED, {}):
        *way, last = json.loads(key)
        holder: Any = state
        for step in way:
            holder = holder[step]
        holder[last] = torch.cat([rows[key] for rows in pieces])
