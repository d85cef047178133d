"""How large a network is: parameters, and multiply-accumulates of a forward.

Nothing is computed for it: torch's fake tensors have a shape and no numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor, nn

from advdiff_core.draws import Draws
from advdiff_core.interfaces.component import Build
from advdiff_core.types import DataInfo, Domain

__all__ = [
    "EXAMPLES", "Size", "default_size", "flops_words", "macs_of", "macs_words", "parameters_of",
]  # fmt: skip

#: Data that `advdiff explain` builds a network for; the first that it takes.
EXAMPLES = (
    DataInfo(shape=(3, 32, 32), count=1, domain=Domain(-1.0, 1.0), classes=10),
    DataInfo(shape=(2,), count=1, classes=10),
)


@frozen(kw_only=True)
class Size:
    """Size of a network for some data.

    Attributes:
        shape: Shape of a sample.
        parameters: Numbers it learns.
        macs: Multiply-accumulates of the forward of one sample, in convolutions, matrix products
            and attention; None if they could not be counted.
    """

    shape: tuple[int, ...]
    parameters: int
    macs: int | None


def macs_words(macs: int) -> str:
    """A count in words, for example `9.26 GMAC`."""
    for unit, size in (("GMAC", 10**9), ("MMAC", 10**6), ("kMAC", 10**3)):
        if macs >= size:
            return f"{macs / size:.3g} {unit}"
    return f"{macs} MAC"


def flops_words(flops: float) -> str:
    """Operations in words, for example `18.5 GFLOP`."""
    units = ("FLOP", 1), ("kFLOP", 10**3), ("MFLOP", 10**6), ("GFLOP", 10**9), ("TFLOP", 10**12)
    unit, size = max((one for one in units if flops >= one[1]), key=lambda one: one[1],
                     default=units[0])  # fmt: skip
    return f"{flops / size:.3g} {unit}"


def parameters_of(module: nn.Module) -> int:
    """Numbers that a module learns; a tensor under two names counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def macs_of(
    module: nn.Module,
    kind: str,
    data: DataInfo,
    *,
    levels: bool = True,
    stop_at: str | None = None,
) -> int | None:
    """Multiply-accumulates of the forward of one sample in eval mode.

    Args:
        module: The network, which stays as it is.
        kind: Its registry kind.
        data: The data it was built for.
        levels: Whether it is given a noise level, as denoisers are.
        stop_at: Tap at which a backbone stops; None for the whole forward.

    Returns:
        The count; None if the forward looks at numbers, which there are none of here.
    """
    # They take a second to import, which nobody but the counting should wait for.
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # As plain products, since fused attention is counted on some devices only.
    plain = sdpa_kernel(SDPBackend.MATH)
    try:
        with _faked(), _evaluated(module), counter, plain, torch.no_grad():
            _run(module, kind, data, levels=levels, stop_at=stop_at)
    except Exception:
        return None
    # One multiply-accumulate is two of its operations.
    return int(counter.get_total_flops()) // 2


def default_size(component: type[Any], kind: str, settings: type[Any]) -> Size | None:
    """Size of a network with default settings, on the first of `EXAMPLES` that it takes.

    Args:
        component: The network's class.
        kind: Its registry kind.
        settings: Its settings class.

    Returns:
        The size; None if a key has no default, or the network cannot be built without files.
    """
    if any(one.init and one.default is attrs.NOTHING for one in attrs.fields(settings)):
        return None
    for data in EXAMPLES:
        try:
            with _faked():
                built = component(settings(), Build(path=f"models.{kind}", data=data))
        except Exception:
            continue
        macs = macs_of(built, kind, data)
        return Size(shape=data.shape, parameters=parameters_of(built), macs=macs)
    return None


def _run(
    module: nn.Module, kind: str, data: DataInfo, *, levels: bool, stop_at: str | None
) -> None:
    held = next(module.parameters(), torch.zeros(()))
    x = torch.zeros(1, *data.shape, device=held.device)
    y = torch.zeros(1, dtype=torch.int64, device=held.device) if data.classes else None
    if kind == "discriminator":
        module(x, reference=x, labels=y)
    elif kind == "alignment_target":
        module(x, y, Draws(("size",), start=0, size=1, total=1, device=held.device))
    else:
        level: Tensor | None = torch.zeros(1, device=held.device) if levels else None
        taps = {} if stop_at is None else {"taps": (stop_at,), "stop_at": stop_at}
        module(x, level, y, **taps)


@contextmanager
def _faked() -> Iterator[None]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    """In eval mode, and then each part in its own mode again."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
