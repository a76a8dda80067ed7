"""The configurations that are compared: the note's four, two with the gateway, and kinds of replication."""

from dataclasses import replace
from typing import Final, NamedTuple

from kmip_lab.keymanager.roles import Link, Roles, two_plus_two


class Case(NamedTuple):
    """A configuration: the number of servers, through the gateway or not, and if clients keep their sessions."""

    title: str
    servers: int
    gateway: bool
    sessions: str


#: The first four are the columns of the note's tables, in its order and in its words.
CASES: Final[dict[str, Case]] = {
    "single_fresh": Case("Single server (not cached)", 1, gateway=False, sessions="fresh"),
    "single_kept": Case("Single server (cached)", 1, gateway=False, sessions="kept"),
    "two_fresh": Case("Two load-balanced servers (not cached)", 2, gateway=False, sessions="fresh"),
    "two_kept": Case("Two load-balanced servers (cached)", 2, gateway=False, sessions="kept"),
    "gateway_single": Case("Gateway, one server (not cached)", 1, gateway=True, sessions="fresh"),
    "gateway_two": Case("Gateway, two servers (not cached)", 2, gateway=True, sessions="fresh"),
}

#: The operations of the note, in its order; their titles are those of its chapters.
OPERATIONS: Final[dict[str, str]] = {
    "get": "Get AES-256 symmetric key",
    "wrap": "NIST AES key wrap",
    "create": "Create AES-256 key",
    "create-rsa": "Create RSA-2048 key pair",
    "create-ecc": "Create ECDSA-Curve-P-256 key pair",
}

#: Seconds until a change is at a key manager in the same data centre, or in the other, and is acknowledged.
NEAR: Final = 0.001
FAR: Final = 0.09

#: The kinds of replication that are compared, with their titles on the page.
VARIANTS: Final = {
    "asynchronous": "asynchronous",
    "collocated": f"synchronous, collocated partner ({1000 * NEAR:.0f} ms)",
    "remote": f"synchronous, remote partner ({1000 * FAR:.0f} ms)",
}


def roles_of(variant: str, factor: float) -> Roles:
    """Two masters and two standbys; times are divided by ``factor``.

    Without a variant, as in the note: each master has its synchronous partner in the same data centre, without delay.
    """
    if not variant:
        return two_plus_two()
    roles = two_plus_two(NEAR / factor, FAR / factor)
    return {
        name: replace(member, links={other: _link(variant, name, other, link) for other, link in member.links.items()})
        for name, member in roles.items()
    }


def _link(variant: str, name: str, other: str, link: Link) -> Link:
    """Collocated partners are in one site, remote ones are the other site's standby (numbers differ)."""
    (site, number), (other_site, other_number) = name.split("-"), other.split("-")
    synchronous = {
        "asynchronous": False,
        "collocated": site == other_site,
        "remote": site != other_site and number != other_number,
    }
    return replace(link, synchronous=synchronous[variant])
