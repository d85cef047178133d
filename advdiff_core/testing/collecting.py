"""`laws(...)`: the laws of a distribution as tests that pytest collects.

Collecting reads entry points and this module's table of law names; torch, Hypothesis and the plugin
are imported when the first law is tried.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest
from attrs import field, frozen

from advdiff_core.discovery import KINDS, Catalogue, Entry, scan
from advdiff_core.discovery.kinds import canonical_distribution
from advdiff_core.errors import UsageError, nearest
from advdiff_core.testing.example import Example, MadeExample
from advdiff_core.testing.findings import LawBroken
from advdiff_core.testing.index import LAW_NAMES, SLOW, law_names

if TYPE_CHECKING:
    from advdiff_core.testing.law import Law
    from advdiff_core.testing.subject import Subject

__all__ = ["Case", "broken_laws", "kind_of", "law_of", "laws"]

#: Witnesses that are tried against a law where nobody asks for another number.
DEFAULT_WITNESSES = 10

Examples = Mapping[str, Sequence[MadeExample]]


@frozen(kw_only=True)
class Case:
    """One law of one component.

    Attributes:
        kind: Registry kind.
        use: What a recipe writes after `use =`.
        owner: Its distribution.
        law: Name of the law.
        number: Which of its examples.
        example: How it is built; its defaults if None.
    """

    kind: str
    use: str
    owner: str
    law: str
    number: int = 0
    example: MadeExample | None = field(default=None, hash=False)

    @property
    def component(self) -> str:
        """`kind:use`, as in `examples`."""
        return f"{self.kind}:{self.use}"

    @property
    def id(self) -> str:
        """`kind:use/law`, with the number of the example if it is not the first."""
        number = f"#{self.number + 1}" if self.number else ""
        return f"{self.component}{number}/{self.law}"

    def check(self, witnesses: int = DEFAULT_WITNESSES) -> None:
        """Try the law.

        Raises:
            LawBroken: If the component breaks it.
        """
        from advdiff_core.testing.law import try_law

        subject = _subject(self.kind, self.use, self.owner, self.number, _Held(self.example))
        try_law(law_of(self.kind, self.law), subject, witnesses=witnesses)


class _Held:
    """An example as a key of a cache: two are the same if they are one object."""

    def __init__(self, example: MadeExample | None) -> None:
        self.example = example

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and self.example is other.example

    def __hash__(self) -> int:
        return id(self.example)


@functools.cache
def _subject(kind: str, use: str, owner: str, number: int, held: _Held) -> Subject:
    from advdiff_core.testing.subject import Subject

    del number
    return Subject(kind, use, _catalogue(), owner=owner, example=held.example)


@functools.cache
def _catalogue() -> Catalogue:
    """What is installed, and an attack for components that nest one where none is."""
    from advdiff_core.testing.parts import BenchAttack
    from advdiff_core.testing.subject import catalogue_with

    return catalogue_with(scan(), "attack", "bench-attack", BenchAttack)


def law_of(kind: str, name: str) -> Law:
    """A law of a kind by name."""
    from advdiff_core.testing.kinds.common import COMMON

    own = importlib.import_module(f"advdiff_core.testing.kinds.{kind}").LAWS
    known: dict[str, Law] = {**COMMON.by_name, **own.by_name}
    return known[name]


def laws(
    plugin: str | Sequence[str],
    *,
    expected_failures: Mapping[str, str] | None = None,
    examples: Examples | None = None,
    witnesses: int = DEFAULT_WITNESSES,
) -> Callable[..., None]:
    """The laws of every component that a distribution declares, as a test.

        test_laws = laws("advdiff_mine", expected_failures={"perturbation:mine/free-update": "..."})

    Args:
        plugin: Name of the distribution, or of several, in any spelling.
        expected_failures: Reason by law (`"bf16-autocast"`), or by component and law
            (`"backbone:mine/bf16-autocast"`). A law that holds although expected to
            fail is a failure.
        examples: How components are built, by `kind:use`: settings as a recipe writes them, an
            `Example`, or a function of a folder that makes either. One set of laws each.
        witnesses: How many are tried per law, if pytest is not told by `--advdiff-examples`.

    Raises:
        UsageError: If the plugin declares no component, a key names no law or component of it, or
            Hypothesis is missing.
    """
    if importlib.util.find_spec("hypothesis") is None:
        message = "laws are tried by Hypothesis, which is not installed"
        raise UsageError(message, fix="pip install hypothesis")
    cases = tuple(_cases(plugin, examples or {}))
    reasons = dict(expected_failures or {})
    _check_keys(cases, reasons, examples or {})
    parameters = [pytest.param(case, id=case.id, marks=_marks(case, reasons)) for case in cases]

    @pytest.mark.parametrize("case", parameters)
    def test_laws(case: Case, request: pytest.FixtureRequest) -> None:
        """A component keeps a law of its kind."""
        __tracebackhide__ = True
        if case.law in SLOW and not request.config.getoption("advdiff_slow", default=False):
            pytest.skip("slow: run with --advdiff-slow")
        asked = request.config.getoption("advdiff_examples", default=None)
        message = _complaint(case, witnesses if asked is None else asked)
        if message:
            pytest.fail(message, pytrace=False)

    return test_laws


def _complaint(case: Case, witnesses: int) -> str:
    """How a component breaks a law in one line, "" if it does not; raises what it raised."""
    __tracebackhide__ = True
    try:
        case.check(witnesses)
    except LawBroken as broken:
        if broken.__cause__ is not None:
            raise
        return str(broken)
    return ""


def _marks(case: Case, reasons: Mapping[str, str]) -> tuple[Any, ...]:
    keys = (case.id, f"{case.component}/{case.law}", case.law)
    reason = next((reasons[key] for key in keys if key in reasons), None)
    if reason is None:
        return ()
    # A law that is broken raises one of the two; anything else is an error of the tests.
    raises = (LawBroken, pytest.fail.Exception)
    return (pytest.mark.xfail(reason=reason, strict=True, raises=raises),)


def _cases(plugin: str | Sequence[str], examples: Examples) -> Iterator[Case]:
    names = [plugin] if isinstance(plugin, str) else list(plugin)
    catalogue = scan()
    for name in names:
        entries = [
            entry for kind in KINDS for entry in catalogue.entries if _is_of(entry, kind, name)
        ]
        if not entries:
            message = f"no installed distribution {name!r} declares a component"
            near = nearest(canonical_distribution(name), catalogue.distributions())
            fix = f"did you mean {near!r}?" if near else f"install it: pip install -e {name}"
            raise UsageError(message, fix=fix)
        for entry in entries:
            yield from _of_entry(entry, examples)


def _is_of(entry: Entry, kind: str, name: str) -> bool:
    return entry.kind == kind and canonical_distribution(entry.distribution) == (
        canonical_distribution(name)
    )


def _of_entry(entry: Entry, examples: Examples) -> Iterator[Case]:
    """Cases of a component, and of the variants of it that examples name."""
    prefix = f"{entry.kind}:{entry.name}"
    variants = [key for key in examples if key == prefix or key.startswith(f"{prefix}:")]
    for key in variants or [prefix]:
        use = key.partition(":")[2]
        for number, example in enumerate(examples.get(key) or [None]):
            for law in law_names(entry.kind):
                yield Case(
                    kind=entry.kind, use=use, owner=entry.distribution, law=law, number=number,
                    example=example,
                )  # fmt: skip


def _check_keys(cases: Sequence[Case], reasons: Mapping[str, str], examples: Examples) -> None:
    known = {key for case in cases for key in (case.id, f"{case.component}/{case.law}", case.law)}
    _refuse_unknown("expected_failures", reasons, known)
    _refuse_unknown("examples", examples, {case.component for case in cases})


def _refuse_unknown(what: str, keys: Mapping[str, Any], known: set[str]) -> None:
    for key in keys:
        if key not in known:
            near = nearest(key, known)
            fix = f"did you mean {near!r}?" if near else f"one is {min(known)!r}"
            message = f"{what} names {key!r}, which is no law or component of the plugin"
            raise UsageError(message, fix=fix)


def broken_laws(
    component: type[Any],
    *,
    kind: str = "",
    only: Sequence[str] = (),
    witnesses: int = DEFAULT_WITNESSES,
    example: Example | Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """The laws that a class breaks, with what is wrong; the class needs no entry point.

    Args:
        component: The class.
        kind: Its registry kind; found by its base class if left out.
        only: Names of laws; all if empty.
        witnesses: How many are tried per law.
        example: How it is built; its defaults if None.
    """
    from advdiff_core.testing.findings import NotApplicable
    from advdiff_core.testing.law import try_law
    from advdiff_core.testing.subject import Subject, catalogue_with

    kind = kind or kind_of(component)
    catalogue = catalogue_with(_catalogue(), kind, "tested", component)
    subject = Subject(kind, "tested", catalogue, owner="unregistered", example=example)
    broken: dict[str, str] = {}
    for name in only or [law for law in LAW_NAMES[""] + LAW_NAMES[kind] if law not in SLOW]:
        try:
            try_law(law_of(kind, name), subject, witnesses=witnesses)
        except LawBroken as error:
            broken[name] = str(error)
        except NotApplicable:
            continue
    return broken


def kind_of(component: type[Any]) -> str:
    """The registry kind of a class, by its base class.

    Raises:
        UsageError: If it is no component.
    """
    from advdiff_core.discovery.loading import interface_of

    for kind in KINDS:
        if issubclass(component, interface_of(kind)):
            return kind
    message = f"{component.__name__} is no component of a known kind"
    raise UsageError(message, fix="derive it from an interface of advdiff_core")
