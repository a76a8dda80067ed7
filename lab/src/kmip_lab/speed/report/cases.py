"""What is compared: the note's four configurations, and two with the gateway."""

from typing import Final, NamedTuple


class Case(NamedTuple):
    """A configuration: how many servers, by way of the gateway or not, and what clients do with their sessions."""

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
