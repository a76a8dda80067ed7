"""Patterns of identity rules: whether a value of a certificate fits one, and whether one matches all that another does.

The keys are those of MatchConfig. A shell-style pattern has the wildcards of ``fnmatch``: ``*``, ``?`` and ``[abc]``.
"""

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final
from unicodedata import category

WILDCARDS: Final = frozenset("*?[")  # characters with which a pattern matches more than itself


def fits(key: str, value: str, pattern: str) -> bool:
    """Return True if a value of a certificate fits a pattern of this key. A value that is odd fits none."""
    if is_odd(value):
        return False
    match key:
        case "san_ip":
            return ipaddress.ip_address(value) in ipaddress.ip_network(pattern)
        case "fingerprint_sha256":
            return value == pattern
        case "san_dns":
            return _labels_fit(value, pattern.lower(), fnmatchcase)
        case "san_email":
            return _email_fits(value, lower_domain(pattern), fnmatchcase)
        case _:
            return fnmatchcase(value, pattern)


def is_odd(value: str | bytes) -> bool:
    """Return True for a name with NUL or a control character: programs differ about where such a name ends."""
    return isinstance(value, bytes) or any(category(character) == "Cc" for character in value)


def lower_domain(address: str) -> str:
    """Return an e-mail address, or a pattern for one, with its domain in lower case."""
    local, at, domain = address.rpartition("@")
    return f"{local}{at}{domain.lower()}"


_Fits = Callable[[str, str], bool]


def _labels_fit(name: str, pattern: str, fit: _Fits) -> bool:
    """Compare a DNS name label by label: a wildcard stands for characters of one label (RFC 9525 section 6.3)."""
    labels, patterns = name.split("."), pattern.split(".")
    return len(labels) == len(patterns) and all(
        label and fit(label, part) for label, part in zip(labels, patterns, strict=True)
    )


def _email_fits(address: str, pattern: str, fit: _Fits) -> bool:
    """Compare an e-mail address, its domain label by label; a pattern without "@" is for the whole address."""
    local, at, domain = pattern.rpartition("@")
    if not at:
        return fit(address, pattern)
    of, _, name = address.rpartition("@")
    return fit(of, local) and _labels_fit(name, domain, fit)


def matches_all_of(general: Mapping[str, Sequence[str]], special: Mapping[str, Sequence[str]]) -> bool:
    """Return True if it is certain that every certificate that ``special`` matches is matched by ``general``, too.

    Both are the keys of a match, with the patterns of each. False also stands for "not known": patterns with ``?`` or
    ``[`` are compared literally only.
    """
    return all(
        key in special and all(any(covers(key, pattern, other) for pattern in patterns) for other in special[key])
        for key, patterns in general.items()
    )


def covers(key: str, general: str, special: str) -> bool:
    """Return True if it is certain that every value that fits ``special`` fits ``general``, too."""
    if general == special:
        return True
    if key == "san_ip":
        return _network_covers(general, special)
    if not WILDCARDS & set(special):  # it fits itself only
        return fits(key, _as_in_facts(key, special), general)
    match key:
        case "san_dns":
            return _labels_fit(special.lower(), general.lower(), _absorbs)
        case "san_email":
            return "@" in special and _email_fits(lower_domain(special), lower_domain(general), _absorbs)
        case _:
            return _absorbs(special, general)


def _as_in_facts(key: str, value: str) -> str:
    """Return a value in the form that ``fits`` expects."""
    if key == "san_dns":
        return value.lower()
    return lower_domain(value) if key == "san_email" else value


def _network_covers(general: str, special: str) -> bool:
    one, other = ipaddress.ip_network(general), ipaddress.ip_network(special)
    if isinstance(one, ipaddress.IPv4Network):
        return isinstance(other, ipaddress.IPv4Network) and other.subnet_of(one)
    return isinstance(other, ipaddress.IPv6Network) and other.subnet_of(one)


def _absorbs(special: str, general: str) -> bool:
    """Return True if ``general`` matches each text that ``special`` matches: its ``*`` absorb the other's wildcards.

    Compared as a text, each ``*`` and ``?`` of ``special`` can only be met by a ``*`` of ``general``, which then also
    meets all that the wildcard stands for. Characters in brackets and ``?`` of ``general`` have no such proof.
    """
    return not ({"?", "["} & set(general) or "[" in special) and fnmatchcase(special, general)
