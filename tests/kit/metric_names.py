"""Metrics in expressions of PromQL: their names, and the labels by which they are selected or summed."""

import re
from collections.abc import Iterator
from typing import Final

_USE: Final = re.compile(
    r"(?:(?:sum|max|min|count|avg) by \(([a-z_, ]+)\) \(+)?(?:\w+\()?(?<![:\w])(kmip_gateway_[a-z_]+)\b(?:\{([^}]*)\})?"
)
_OF_TARGETS: Final = frozenset({"", "job", "instance", "le"})  # labels that every series has, or that buckets have


def metrics_in(text: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the name of each metric of the gateway in a text, and its labels, without those of every target."""
    for by, name, selector in _USE.findall(text):
        labels = {label.strip() for label in by.split(",")} | set(re.findall(r"([a-z_]+)[!=]", selector))
        yield name, labels - _OF_TARGETS
