"""Checks that laws of several kinds of networks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from advdiff_core.interfaces.module import ModuleComponent
from advdiff_core.testing.compare import finite
from advdiff_core.testing.findings import Finding, wrong
from advdiff_core.testing.state import changes, digest, world_state

__all__ = ["LayerWatch", "check_double_backward", "random_as_declared"]


def check_double_backward(
    net: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor], *, declared: bool
) -> None:
    """Find fault if `supports_double_backward` is not what a gradient of a gradient shows.

    Args:
        net: The network.
        x: Its input [B, ...].
        run: One forward.
        declared: What the network says.
    """
    if declared:
        double_backward(net, x, run)
        return
    try:
        double_backward(net, x, run)
    except Finding:
        net.zero_grad()
        return
    # Set by itself, for its settings: attention may have no second derivative at other sizes.
    if "supports_double_backward" in vars(net):
        return
    raise wrong(
        "a double backward that works, with supports_double_backward = False",
        wanted="False only where there is no gradient of the gradient: penalties are refused then",
        mend="remove supports_double_backward = False",
    )


def double_backward(net: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor]) -> None:
    """Find fault if the squared input gradient of `run` at `x` [B, ...] cannot be trained."""
    leaf = x.detach().clone().requires_grad_()
    mend = "set supports_double_backward = False, or use layers with a second derivative"
    try:
        out = run(leaf)
        (slope,) = torch.autograd.grad(out.sum(), leaf, create_graph=True)
        # A whole backward: asking for some gradients only would pass over what cannot be derived.
        slope.square().sum().backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        text = f"{type(error).__name__} in a double backward: {error}"
        raise wrong(text, wanted="a gradient of the gradient", mend=mend) from None
    weights = [p for p in net.parameters() if p.requires_grad]
    known = [p.grad.clone() for p in weights if p.grad is not None]
    net.zero_grad()
    if weights and not known:
        raise wrong(
            "a double backward that reaches no weight",
            wanted="a gradient of the gradient, as supports_double_backward = True says",
            mend=mend,
        )
    for gradient in known:
        finite(gradient, what="a double backward", mend=mend)


def random_as_declared(
    net: ModuleComponent, run: Callable[[], object], inputs: Mapping[str, Tensor]
) -> None:
    """Find fault if `run` in train mode draws although `draws_random` is False, or edits inputs.

    Args:
        net: The network, in train mode.
        run: One forward.
        inputs: Its inputs by name, of any shape.
    """
    held = {name: digest(tensor) for name, tensor in inputs.items()}
    before = world_state()
    run()
    found = changes(before, world_state())
    allowed = "torch's global generator" if net.draws_random else ""
    drawn = [name for name in found if name != allowed]
    if drawn:
        raise wrong(
            f"that a forward in train mode changes {drawn[0]} with draws_random = "
            f"{net.draws_random}",
            wanted="a forward that draws only where draws_random is True",
            mend="override draws_random: the core then keys torch's generator around a forward",
        )
    edited = [name for name, tensor in inputs.items() if digest(tensor) != held[name]]
    if edited:
        raise wrong(
            f"that a forward edits its input {edited[0]}",
            wanted="inputs left as they are",
            mend="do not edit in place: write x = x + ..., or clone first",
        )


class LayerWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes, while a network runs, which layers have run when a tensor is made.

    Args:
        net: The network; its layers are the submodules that own parameters.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._net = net
        self._ran: list[str] = []
        self._made_after: dict[int, int] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> LayerWatch:
        for name, part in self._net.named_modules():
            if any(True for _ in part.parameters(recurse=False)):
                self._handles.append(part.register_forward_pre_hook(self._noted(name)))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def _noted(self, name: str) -> Callable[[nn.Module, object], None]:
        def note(_: nn.Module, __: object) -> None:
            self._ran.append(name)

        return note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note where its results lie."""
        del types
        made = func(*args, **(kwargs or {}))
        read = {_place(tensor) for tensor in tree_leaves((args, kwargs))}
        for tensor in tree_leaves(made):
            # A view of what was there is not made here, unless it was written to.
            if _place(tensor) not in read or func._schema.is_mutable:
                self._made_after[_place(tensor)] = len(self._ran)
        return made

    def layers_after(self, tensor: Tensor) -> list[str]:
        """Layers that ran after `tensor` (any shape) had been made."""
        place = self._made_after.get(_place(tensor), len(self._ran))
        return self._ran[place:]


def _place(value: Any) -> int:
    """Where the numbers of a tensor lie; 0 for what is none."""
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else 0
