"""How the masters replicate: the note's environment, and what its third recommendation is about."""

from dataclasses import replace
from typing import Final

from kmip_lab.keymanager.roles import Link, Roles, two_plus_two

#: Seconds until a change is at a key manager beside, and at one in the other data centre, and is acknowledged.
NEAR: Final = 0.001
FAR: Final = 0.09

#: The variants that are compared, with what the page calls them.
VARIANTS: Final = {
    "asynchronous": "asynchronous",
    "collocated": f"synchronous, collocated partner ({1000 * NEAR:.0f} ms)",
    "remote": f"synchronous, remote partner ({1000 * FAR:.0f} ms)",
}


def roles_of(variant: str, factor: float) -> Roles:
    """Two masters and two standbys; times are divided by ``factor``.

    Without a variant, as in the note: each master has its synchronous partner beside it, and all are on one machine.
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
