"""Laws as Hypothesis properties: how one is declared, drawn, shrunk and reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import hypothesis
from attrs import frozen
from hypothesis import HealthCheck, Phase
from hypothesis.errors import Flaky, HypothesisException
from hypothesis.strategies import SearchStrategy

from advdiff_core.errors import AdvdiffError, escape
from advdiff_core.recipe.problems import Mismatch
from advdiff_core.testing.findings import Finding, LawBroken, NotApplicable, shown, witness_text

if TYPE_CHECKING:
    from advdiff_core.testing.subject import Subject

__all__ = ["Law", "Laws", "try_law"]

#: A strategy, or what makes one for a component.
Draw = SearchStrategy[Any] | Callable[[Any], SearchStrategy[Any]]


@frozen(kw_only=True)
class Law:
    """A promise of every component of a kind.

    Attributes:
        name: Name, as in `expected_failures`.
        summary: The promise in one sentence.
        check: Raises `Finding` if the component breaks it; takes the component and the witness.
        witness: What is drawn, by name of the argument.
        effort: Share of the asked-for witnesses that is tried; for laws that take long.
        slow: Tried only if asked for (`--advdiff-slow`).
    """

    name: str
    summary: str
    check: Callable[..., None]
    witness: Mapping[str, Draw]
    effort: float = 1.0
    slow: bool = False


class Laws:
    """The laws of one kind, in the order they are declared."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.by_name: dict[str, Law] = {}

    def law(
        self, name: str, *, effort: float = 1.0, slow: bool = False, **witness: Draw
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Declare the decorated function as a law; its docstring is the promise."""

        def declare(check: Callable[..., None]) -> Callable[..., None]:
            summary = " ".join((check.__doc__ or "").split())
            self.by_name[name] = Law(
                name=name, summary=summary, check=check, witness=witness, effort=effort, slow=slow
            )
            return check

        return declare


def try_law(law: Law, subject: Subject, *, witnesses: int) -> None:
    """Look for a witness against a law, and shrink it.

    The search is the same each time: what is found once is found again.

    Args:
        law: The law.
        subject: The component.
        witnesses: How many to try.

    Raises:
        LawBroken: With law, component, what was found and wanted, the shrunk witness and the mend.
        NotApplicable: If the law says nothing about this component.
    """

    def attempt(**witness: Any) -> None:
        __tracebackhide__ = True
        try:
            law.check(subject, **witness)
        except Finding as finding:
            raise LawBroken(_line(law, subject, witness, finding)) from None
        except (HypothesisException, NotApplicable):
            raise
        except Exception as error:
            raise LawBroken(_crash(law, subject, witness, error)) from error

    try:
        strategies = {name: _strategy(draw, subject) for name, draw in law.witness.items()}
    except (AdvdiffError, Finding, Mismatch) as error:
        message = "it cannot be had: see law 'builds'"
        raise NotApplicable(message) from error
    if not strategies:
        attempt()
        return
    search = hypothesis.given(**strategies)(attempt)
    search = hypothesis.settings(
        max_examples=max(1, round(witnesses * law.effort)), deadline=None, derandomize=True,
        database=None,
        phases=(Phase.generate, Phase.shrink), print_blob=False, report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )(search)  # fmt: skip
    try:
        search()
    except Flaky as flaky:
        raise _unreliable(law, subject, flaky) from None


def _unreliable(law: Law, subject: Subject, flaky: Flaky) -> LawBroken:
    """What a component breaks, but not each time: it depends on something global."""
    causes = getattr(flaky, "exceptions", ())
    first = next((str(cause) for cause in causes if isinstance(cause, LawBroken)), "")
    if first:
        return LawBroken(f"{first} (not each time: it depends on global state)")
    finding = Finding(
        "another outcome each time", "one that depends on the witness", "draw from rng"
    )
    return LawBroken(_line(law, subject, {}, finding))


def _strategy(draw: Draw, subject: Subject) -> SearchStrategy[Any]:
    return draw if isinstance(draw, SearchStrategy) else draw(subject)


def _line(law: Law, subject: Subject, witness: Mapping[str, Any], finding: Finding) -> str:
    drawn = f"; witness: {witness_text(witness)}" if witness else ""
    return (
        f"law {law.name!r} of {subject.title}: found {finding.found}, wanted {finding.wanted}"
        f"{drawn} - {finding.mend}"
    )


def _crash(law: Law, subject: Subject, witness: Mapping[str, Any], error: Exception) -> str:
    fix = getattr(error, "fix", "") or "mend what raised it, or refuse what it cannot do (R10)"
    found = f"{type(error).__name__}: {escape(shown(error))}"
    finding = Finding(found, "no exception", fix)
    return _line(law, subject, witness, finding)
