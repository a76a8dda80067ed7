"""Traffic: the part of the traffic that an operator asks about, of one identity, backend or address."""

from collections.abc import Collection
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple, Self

from gateway.errors import ControlError


class Traffic(NamedTuple):
    """Traffic that fits every part; an empty part fits all traffic.

    ``backend`` is a backend, or a table of backends: ``kms`` stands for ``kms/1`` and ``kms/2``, too.
    """

    identity: str = ""
    backend: str = ""
    address: IPv4Network | IPv6Network | None = None

    @classmethod
    def take(cls, given: dict[str, Any]) -> Self:
        """Take the parts out of the arguments of a command. Raises ControlError."""
        return cls(_text(given, "identity"), _text(given, "backend"), _network(_text(given, "address")))

    def arguments(self) -> dict[str, str]:
        """Return the parts that are not empty, as ``take`` reads them."""
        return {name: str(part) for name, part in self._asdict().items() if part}

    def fits(self, identity: str, backends: Collection[str], client: str) -> bool:
        """Return True if traffic of an identity with some backends fits. ``client`` is an address with a port."""
        return (
            (not self.identity or identity == self.identity)
            and (not self.backend or any(self.backend in (name, name.partition("/")[0]) for name in backends))
            and (self.address is None or _is_in(client, self.address))
        )


def _text(given: dict[str, Any], key: str) -> str:
    value = given.pop(key, "")
    if not isinstance(value, str):
        raise ControlError(f"{key} is {value!r}; give a text")
    return value


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text, strict=False) if text else None
    except ValueError:
        raise ControlError(f"{text!r} is no address; give an IP address or a network such as 10.1.0.0/16") from None


def _is_in(client: str, network: IPv4Network | IPv6Network) -> bool:
    host = client.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address) in network
