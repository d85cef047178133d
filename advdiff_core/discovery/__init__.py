"""Finds installed components without importing them."""

from advdiff_core.discovery.catalogue import Catalogue, Entry, UnknownComponentError, scan
from advdiff_core.discovery.kinds import CONTRACT, CORE, HOOKS, KINDS, group_of

__all__ = [
    "CONTRACT",
    "CORE",
    "HOOKS",
    "KINDS",
    "Catalogue",
    "Entry",
    "UnknownComponentError",
    "group_of",
    "scan",
]
