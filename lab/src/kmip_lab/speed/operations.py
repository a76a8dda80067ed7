"""The table of operations that can be measured, and their requests in KMIP 1.0 to 2.1."""

from collections.abc import Callable
from typing import Final, NamedTuple

from gateway.kmip import compose
from gateway.kmip.messages import Version
from kmip_lab.tools.requests import create_ecdsa_pair, create_key, create_rsa_pair, get_key, wrap_key


class Keys(NamedTuple):
    """Unique identifiers of the keys that Get and Wrap need."""

    key: str = ""
    wrapping_key: str = ""


NO_KEYS: Final = Keys()


class Measurable(NamedTuple):
    """An operation that can be measured: its title, its request, the keys that it needs, and if it makes keys."""

    title: str
    request: Callable[[Version, Keys], bytes]
    needs_key: bool = False
    needs_wrapping_key: bool = False
    makes_keys: bool = False


def _get(version: Version, keys: Keys) -> bytes:
    return get_key(keys.key, version)


def _wrap(version: Version, keys: Keys) -> bytes:
    return wrap_key(keys.key, keys.wrapping_key, version)


def _create(version: Version, _keys: Keys) -> bytes:
    return create_key(version)


def _create_rsa(version: Version, _keys: Keys) -> bytes:
    return create_rsa_pair(version)


def _create_ecc(version: Version, _keys: Keys) -> bytes:
    return create_ecdsa_pair(version)


def _server(version: Version, _keys: Keys) -> bytes:
    return compose.query(version)


def _versions(version: Version, _keys: Keys) -> bytes:
    return compose.discover_versions(max(version, (1, 1)))  # 1.0 does not have the operation


#: The operations by the names of s_speed's options, in the order of the application note's tests.
OPERATIONS: Final[dict[str, Measurable]] = {
    "get": Measurable("Get AES-256 key", _get, needs_key=True),
    "wrap": Measurable("Wrap key (NIST AES key wrap)", _wrap, needs_key=True, needs_wrapping_key=True),
    "create": Measurable("Create AES-256 key", _create, makes_keys=True),
    "create-rsa": Measurable("Create RSA-2048 key pair", _create_rsa, makes_keys=True),
    "create-ecc": Measurable("Create ECDSA P-256 key pair", _create_ecc, makes_keys=True),
    "server": Measurable("Query server", _server),
    "versions": Measurable("Discover versions", _versions),
}
