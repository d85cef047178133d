"""Which names of a file are which of the network: prefixes, translation, and what does not fit."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence

from attrs import evolve, field, frozen
from torch import Tensor

from advdiff_core.errors import DataError, nearest
from advdiff_core.interfaces.backbone import Backbone

__all__ = ["Fit", "Mismatched", "best_fit", "fitted"]

_MAX_PREFIX_PARTS = 6
_MAX_PREFIXES = 24
_SHOWN = 5
_COMPARED = 500
#: What wrappers count beside the weights of the model they wrap.
_BOOKKEEPING = frozenset({"n_averaged"})
#: Kept as the network was built: torch before 0.4.1 saved none, and evaluation reads none.
_COUNTER = "num_batches_tracked"


@frozen(kw_only=True)
class Fit:
    """How the names of a file meet those of a network.

    Attributes:
        prefix: What the names of the file begin with, and those of the network do not.
        added: What is put before them instead.
        dropped: Names of the file that were left out on request, or count nothing.
        filled: Names of the network that stay as built.
        missing: Names of the network that the file lacks.
        unexpected: Names of the file that the network lacks.
        different: Name, shape found, shape wanted.
        matched: Number of names that fit.
    """

    prefix: str = ""
    added: str = ""
    dropped: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    different: tuple[tuple[str, str, str], ...] = field(default=())
    matched: int = 0

    @property
    def whole(self) -> bool:
        """True if nothing is missing, unexpected or different."""
        return not (self.missing or self.unexpected or self.different)

    @property
    def rank(self) -> tuple[int, int, int]:
        """Larger is better: more names, fewer left over, shorter prefixes."""
        return self.matched, -len(self.unexpected), -len(self.prefix) - len(self.added)


class Mismatched(DataError):  # noqa: N818 - read as a state of the file.
    """Tensors that do not fit the network.

    Args:
        fit: What fits and what does not.
        where: File, key and network.
    """

    def __init__(self, fit: Fit, where: str) -> None:
        self.fit = fit
        fix = "give the settings (-s) the weights were made with, or --key; --json lists all names"
        super().__init__(_summary(fit), code="S12", where=where, fix=fix)

    def as_json(self) -> dict[str, object]:
        """Every name at fault."""
        keys = ("name", "found", "wanted")
        return {
            "matched": self.fit.matched,
            "missing": list(self.fit.missing),
            "unexpected": list(self.fit.unexpected),
            "different": [dict(zip(keys, one, strict=True)) for one in self.fit.different],
        }


def best_fit(
    backbone: Backbone,
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    drop: Sequence[str] = (),
) -> Fit:
    """The prefix under which most names of a file are those of the network.

    Args:
        backbone: The network, for its translation of foreign names.
        expected: Its tensors by name, any shape.
        found: Those of the file, any shape; only names, shapes and dtypes count.
        drop: Patterns of names to leave out.
    """
    dropped = {name for name in found if _matches(name, drop) or name in _BOOKKEEPING}
    kept = {name: tensor for name, tensor in found.items() if name not in dropped}
    added = _common_prefix(list(expected))
    choices = [
        _compare(backbone, expected, kept, Fit(prefix=prefix, added=extra))
        for prefix in _prefixes(list(kept))
        for extra in dict.fromkeys(("", added))
    ]
    best = max(choices, key=lambda fit: fit.rank)
    return evolve(best, dropped=tuple(sorted(dropped)))


def fitted(backbone: Backbone, found: Mapping[str, Tensor], fit: Fit) -> dict[str, Tensor]:
    """The tensors of a file under the network's names.

    Args:
        backbone: The network.
        found: Tensors of the file, any shape.
        fit: From `best_fit`.
    """
    inside = {
        name.removeprefix(fit.prefix): tensor
        for name, tensor in found.items()
        if name.startswith(fit.prefix) and name not in fit.dropped
    }
    return {fit.added + name: tensor for name, tensor in backbone.translate(inside).items()}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _prefixes(names: list[str]) -> list[str]:
    """Leading parts that many names share, the most common first; always the empty one."""
    count: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")[:-1][:_MAX_PREFIX_PARTS]
        count.update(".".join(parts[: n + 1]) + "." for n in range(len(parts)))
    return ["", *(prefix for prefix, _ in count.most_common(_MAX_PREFIXES))]


def _common_prefix(names: list[str]) -> str:
    """Leading parts that all names share."""
    first = names[0].split(".")[:-1] if names else []
    shared = ""
    for n in range(len(first)):
        longer = ".".join(first[: n + 1]) + "."
        if not all(name.startswith(longer) for name in names):
            break
        shared = longer
    return shared


def _compare(
    backbone: Backbone, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], fit: Fit
) -> Fit:
    outside = [name for name in found if not name.startswith(fit.prefix)]
    named = fitted(backbone, found, fit)
    common = [name for name in expected if name in named]
    different = [
        (name, _kind(named[name]), _kind(expected[name]))
        for name in common
        if not _fits(named[name], expected[name])
    ]
    absent = [name for name in expected if name not in named]
    return evolve(
        fit,
        filled=tuple(name for name in absent if name.rpartition(".")[2] == _COUNTER),
        missing=tuple(name for name in absent if name.rpartition(".")[2] != _COUNTER),
        unexpected=tuple(sorted(outside + [name for name in named if name not in expected])),
        different=tuple(different),
        matched=len(common) - len(different),
    )


def _fits(found: Tensor, wanted: Tensor) -> bool:
    """Same shape and both real numbers, or both integers."""
    same = found.is_floating_point() == wanted.is_floating_point()
    return found.shape == wanted.shape and same and found.is_complex() == wanted.is_complex()


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _summary(fit: Fit) -> str:
    choices = fit.unexpected[:_COMPARED]
    near = [(name, nearest(name, choices)) for name in fit.missing[:_SHOWN]]
    missing = [f"{name} (it has {other})" if other else name for name, other in near]
    missing += fit.missing[_SHOWN:]
    different = [f"{name} is {found} instead of {wanted}" for name, found, wanted in fit.different]
    groups = (("missing", missing), ("unexpected", fit.unexpected), ("different", different))
    parts = [f"{title}: {_shorten(items)}" for title, items in groups if items]
    return f"{fit.matched} tensors fit, the others do not: {'; '.join(parts)}"


def _shorten(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
