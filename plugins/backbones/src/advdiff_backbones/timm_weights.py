"""Whether a file of weights holds a whole model of timm."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import nn

from advdiff_core.errors import DataError

__all__ = ["check_whole"]


def check_whole(net: nn.Module, path: Path, where: str) -> None:
    """Refuse a file that lacks tensors of the model, which timm would leave random.

    The classifier may be missing: it is made anew where the number of classes differs. A file in
    another spelling, of which timm translates some, shares few names and is left to timm.

    Args:
        net: The model, with the weights that timm found in the file.
        path: The file, safetensors.
        where: Key of the recipe, for the message.

    Raises:
        DataError: S12 with the number of tensors and the first of them.
    """
    with safe_open(path, framework="pt") as file:
        known = set(file.keys())
    own = list(net.state_dict())
    if sum(name in known for name in own) < len(own) // 2:
        return
    heads = _heads(net)
    missing = [name for name in own if name not in known and not name.startswith(heads)]
    if missing:
        message = f"{path} lacks {len(missing)} of {len(own)} tensors, first {missing[0]}"
        fix = "take the whole file of this model; timm would leave them random"
        raise DataError(message, code="S12", where=where, fix=fix)


def _heads(net: nn.Module) -> tuple[str, ...]:
    """What names of the classifier begin with."""
    named = getattr(net, "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{name}." for name in ((named,) if isinstance(named, str) else named))
