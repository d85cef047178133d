"""What an evaluation hands to those who judge its soundness, and what they answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from attrs import field, frozen
from torch import Tensor, nn

from advdiff_core.interfaces.attack import Victim
from advdiff_core.types import Budget, Domain

__all__ = ["AttackOutcome", "Evidence", "Flag", "Inspection"]


@frozen(kw_only=True)
class Flag:
    """A reason to doubt a number.

    Attributes:
        code: Short fixed name, for example "zero-gradient".
        message: What was found, with its numbers.
        fix: What to do about it.
        severity: "unsound": the number is no bound; "doubtful": it may be too high.
    """

    code: str
    message: str
    fix: str
    severity: Literal["unsound", "doubtful"] = "unsound"


@frozen(kw_only=True, eq=False)
class AttackOutcome:
    """What one attack did to the N samples of an evaluation, at the radius that is judged.

    Attributes:
        name: Name in the report: "pgd", or "autoattack/square" for a member of a composite.
        use: Name of the component, as for `Evidence.probe`.
        settings: Its settings, as plain values.
        tested: Samples it ran on [N], bool, on the CPU.
        broken: Samples it broke, by the independent check [N], bool.
        silent: Samples it saw broken inside the budget while searching, and returned unbroken.
        not_finite: Broken samples whose logits are not finite.
        forwards: Forwards of single samples.
        gradients: Gradients of single samples towards the input; 0 for score-based attacks.
    """

    name: str
    use: str
    settings: Mapping[str, Any]
    tested: Tensor
    broken: Tensor
    silent: int
    not_finite: int
    forwards: int
    gradients: int


@frozen(kw_only=True, eq=False)
class Evidence:
    """What an evaluation knows of a classifier when it is judged.

    Attributes:
        victim: The classifier with the labels of `x`; not counted, safe to call.
        module: Network [B, ...] -> logits [B, K] behind it: frozen parameters, as it was attacked.
        x: The first B <= 128 of the samples, clean [B, ...], on the network's device.
        y: Their labels [B].
        budget: Norm and radius, in units of `x`.
        domain: Valid range of inputs, or None.
        clean: Samples classified correctly without attack [N], bool, on the CPU; `x` are the first.
        outcomes: Every attack that ran, in order; empty where all radii are zero.
        probe: `probe(use, settings)` runs an attack on `x` with random numbers of its own and
            returns which samples are broken afterwards by the independent check [B], bool, on the
            CPU, samples misclassified when clean included; None if no such attack, or setting, is
            installed. `use` may be that of an outcome, with more steps.
        notes: Gets what has to be said beside the flags: what the probes cost.
    """

    victim: Victim
    module: nn.Module
    x: Tensor
    y: Tensor
    budget: Budget
    domain: Domain | None
    clean: Tensor
    outcomes: tuple[AttackOutcome, ...]
    probe: Callable[[str, Mapping[str, Any]], Tensor | None]
    notes: list[str] = field(factory=list)


@frozen(kw_only=True)
class Inspection:
    """The judgement of an evaluation.

    Attributes:
        flags: Reasons to doubt the number, the gravest first.
        samples: Samples that were probed.
        forwards: Forwards of single samples that probing took.
        gradients: Gradients of single samples towards the input.
    """

    flags: tuple[Flag, ...]
    samples: int
    forwards: int
    gradients: int
