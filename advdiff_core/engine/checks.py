"""Contract checks of loss terms, made in the first steps of a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advdiff_core.errors import ContractError
from advdiff_core.interfaces.loss_term import LossTerm
from advdiff_core.step.step import TrainStep

__all__ = ["check_term"]


def check_term(name: str, term: LossTerm, step: TrainStep) -> Tensor:
    """Run a term and hold it to its contract.

    Raises:
        ContractError: P10 if the loss has the wrong type, shape, dtype or device, has no graph, was
            computed from an undeclared query, or if a shared tensor was edited in place.
    """
    step.asked.clear()
    loss: Tensor = term(step)
    complaint = _complaint(loss, step)
    undeclared = [query for query in step.asked if query not in term.needs]
    if not complaint and undeclared:
        complaint = f"asked for {undeclared[0]!r}, which `needs` does not list"
    edited = step.edited()
    if not complaint and edited:
        complaint = f"edited the value of {edited[0]!r} in place"
    if complaint:
        message = f"{type(term).__name__} {complaint}"
        fix = "see the contract of LossTerm.forward"
        raise ContractError(message, code="P10", where=f"terms.{name}", fix=fix)
    return loss


def _complaint(loss: Any, step: TrainStep) -> str:
    size = step.x0.shape[0]
    if not isinstance(loss, Tensor):
        return f"returned {type(loss).__name__}, wanted a tensor [{size}]"
    if loss.shape != (size,):
        return f"returned shape {list(loss.shape)}, wanted one loss per sample [{size}]"
    if not loss.is_floating_point() or loss.dtype in (torch.float16, torch.bfloat16):
        return f"returned {loss.dtype}, wanted float32"
    if loss.device != step.x0.device:
        return f"returned a tensor on {loss.device}, wanted {step.x0.device}"
    if not loss.requires_grad:
        return "returned a loss without a graph: nothing can be trained from it"
    return ""
