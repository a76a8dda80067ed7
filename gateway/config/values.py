"""Types of single settings: from a value in the file to a frozen value, or to a ValueError for the operator.

A message says what is wrong and, after a semicolon, what to do. It repeats only as much of the value as ``shown``
returns.
"""

import ipaddress
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field

from gateway.kmip.groups import GROUPS, OBJECT_TYPE_NAMES, OPERATION_NAMES, Group

_SHOWN: Final = 60  # characters of a value that a message repeats
#: One label of a host name (RFC 1123 section 2.1), with the underscore that container networks use.
_LABEL: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256_DIGITS: Final = 64
_MOST_WORKERS: Final = 64
_LONGEST_CREDENTIAL: Final = 255  # characters of a name in a KMIP Credential


def shown(value: object) -> str:
    """Return a value as a message may repeat it: short, on one line, and nothing that may be a key or a password."""
    if not isinstance(value, str):
        return str(value)[:_SHOWN]
    if "-----BEGIN" in value or "@" in value or "\n" in value:
        return "this text"
    return json.dumps(value if len(value) <= _SHOWN else value[:_SHOWN] + "...", ensure_ascii=False)


def a_text(value: object) -> str:
    """Return the value if it is a text and not empty. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError("must be text; put it in quotes")  # noqa: TRY004 - pydantic takes a ValueError
    if not value.strip():
        raise ValueError("is empty; give it a value, or leave the line out")
    return value


@dataclass(frozen=True, slots=True)
class Address:
    """A host, by name or IP address, and a port. An IPv6 address is written in brackets, and held without."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "host:port" or "[address]:port". Raises ValueError."""
        if "@" in text or "/" in text:
            raise ValueError("is not host:port; leave out everything but the host and the port")
        host, colon, port = text.rpartition(":")
        if text.isdecimal() and int(text) <= 65535:
            raise ValueError(f"is a port without a host; write it as {shown(f'127.0.0.1:{text}')}")
        if not colon or text.endswith("]"):
            raise ValueError(f"has no port; write it as {shown(text + ':5696')}")
        if host in {"", "*"}:
            raise ValueError(
                "has no host; give 0.0.0.0 for every IPv4 address of this machine, [::] for every IPv6 address"
            )
        if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            raise ValueError(f"has the port {shown(port)}; write a number from 0 to 65535")
        return cls(_host(host), int(port))


def _host(host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        return _ipv6(host[1:-1])
    if ":" in host:
        raise ValueError('has several colons; write an IPv6 address in brackets, as "[::1]:5696"')
    labels = host.removesuffix(".").split(".")
    if labels[-1].isdecimal():
        return _ipv4(host)
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"has the host {shown(host)}, which is no host name; give a host name or an IP address")
    return host


def _ipv4(host: str) -> str:
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise ValueError(f"has the host {shown(host)}, which is no IPv4 address; correct it") from None


def _ipv6(host: str) -> str:
    try:
        return str(ipaddress.IPv6Address(host))
    except ValueError:
        raise ValueError(f"has {shown(host)} in brackets, which is no IPv6 address; correct it") from None


def is_loopback(address: Address) -> bool:
    """Return True for a loopback address and for localhost; other names are not looked up."""
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return address.host.lower().rstrip(".") == "localhost"


def _address(value: object) -> Address:
    return value if isinstance(value, Address) else Address.parse(a_text(value))


def _reachable(address: Address) -> Address:
    if address.port == 0:
        raise ValueError("has the port 0; give the port that the key manager listens on, usually 5696")
    return address


def _server_name(value: object) -> str:
    if value == "":
        return ""  # the address's host
    name = a_text(value)
    with suppress(ValueError):
        return str(ipaddress.ip_address(name))
    if ":" in name or "/" in name:
        raise ValueError("is no host name; leave out everything but the host")
    return _host(name)


def _known_host(value: object) -> str:
    name = a_text(value)
    if ":" in name or "/" in name:
        raise ValueError(f"has {shown(name)}; give host names alone, without a port or a path")
    return _host(name).lower().rstrip(".")


def _name(value: object) -> str:
    if not _NAME.fullmatch(name := a_text(value)):
        raise ValueError(f"is {shown(name)}; use up to 64 letters, digits, dots, dashes and underscores")
    return name


def _one_or_many(read: Callable[[object], str]) -> Callable[[object], tuple[str, ...]]:
    """Return a function that reads one value or a list of values with ``read``, and drops repetitions."""

    def read_all(value: object) -> tuple[str, ...]:
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(dict.fromkeys(read(each) for each in values))

    return read_all


def _not_empty(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise ValueError("is empty; give at least one value, or leave the line out")
    return values


def fingerprint(value: object) -> str:
    """Read a SHA-256 fingerprint, with or without colons, as 64 lower-case hexadecimal digits.

    It may be the whole line that ``openssl x509 -fingerprint`` prints.
    """
    digits = a_text(value).strip().lower().removeprefix("sha256 fingerprint=").replace(":", "")
    if not re.fullmatch(r"[0-9a-f]+", digits):
        raise ValueError(f"has {shown(value)}, which is not hexadecimal; {_FINGERPRINT_HELP}")
    if len(digits) != _SHA256_DIGITS:
        raise ValueError(f"has a fingerprint of {len(digits)} digits, and SHA-256 has 64; {_FINGERPRINT_HELP}")
    return digits


_FINGERPRINT_HELP: Final = "give the output of `openssl x509 -noout -fingerprint -sha256 -in FILE`"


def network(value: object) -> str:
    """Read an IP address, or a network in CIDR notation, in its usual spelling."""
    try:
        interface = ipaddress.ip_interface(a_text(value))
    except ValueError:
        raise ValueError(f"has {shown(value)}; give IP addresses or networks such as 10.1.0.0/16") from None
    if interface.ip != interface.network.network_address:
        raise ValueError(f"has {shown(value)}, an address within a network; write {interface.network}")
    return str(interface.ip if interface.network.num_addresses == 1 else interface.network)


#: The name that stands for all operations, or for all object types.
ALL: Final = "all"
#: Names of the groups of operations, as policies write them.
GROUP_NAMES: Final = tuple(group.value for group in Group if group.value.isalpha())
#: The group of each operation, by the operation's name.
GROUP_OF: Final = {OPERATION_NAMES[number]: group.value for number, group in GROUPS.items()}
_NEVER_FORWARDED: Final = frozenset(OPERATION_NAMES[number] for number, group in GROUPS.items() if group is Group.NEVER)


def _known(value: object, names: Sequence[str], what: str, listed: str) -> str:
    """Return the value if it is one of these names. Otherwise the error names those that are spelled alike."""
    text = a_text(value)
    if text in names:
        return text
    by_letters: dict[str, list[str]] = {}
    for name in names:
        by_letters.setdefault(_letters(name), []).append(name)
    near = get_close_matches(_letters(text), by_letters, 1, cutoff=0.7)
    hint = " or ".join(f'"{name}"' for name in by_letters[near[0]]) if near else ""
    raise ValueError(f"has {shown(text)}, which is no {what}; {f'did you mean {hint}?' if hint else listed}")


def _letters(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


_GROUPS_LISTED: Final = f'give names of the specification such as "Create Key Pair", or {", ".join(GROUP_NAMES)}'


def _operation(value: object) -> str:
    return _known(value, [*GROUP_NAMES, *OPERATION_NAMES.values()], "operation and no group of them", _GROUPS_LISTED)


def _allowed_operation(value: object) -> str:
    name = ALL if value == ALL else _operation(value)
    if name in _NEVER_FORWARDED:
        raise ValueError(f'has "{name}", which the gateway never forwards; leave it out (see docs/security.md)')
    return name


def _object_type(value: object) -> str:
    if value == ALL:
        return ALL
    names = list(OBJECT_TYPE_NAMES.values())
    return _known(value, names, "object type", f"give {ALL}, or names of {', '.join(names)}")


def _credential_text(value: object) -> str:
    """Read a name in a KMIP Credential; "" is none."""
    if value == "":
        return ""
    if len(text := a_text(value)) > _LONGEST_CREDENTIAL:
        raise ValueError(f"has {len(text)} characters; give at most {_LONGEST_CREDENTIAL}")
    return text


def _tls_workers(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_WORKERS):
        return value
    raise ValueError(f'is {shown(value)}; give a whole number from 0 to {_MOST_WORKERS}, or "auto"')


Name = Annotated[str, BeforeValidator(_name)]
Names = Annotated[tuple[str, ...], BeforeValidator(_one_or_many(_name))]
Bind = Annotated[Address, BeforeValidator(_address)]
PeerAddress = Annotated[Address, BeforeValidator(_address), AfterValidator(_reachable)]
ServerName = Annotated[str, BeforeValidator(_server_name)]
CredentialText = Annotated[str, BeforeValidator(_credential_text)]
Hosts = Annotated[tuple[str, ...], BeforeValidator(_one_or_many(_known_host))]
Patterns = Annotated[tuple[str, ...], BeforeValidator(_one_or_many(a_text)), AfterValidator(_not_empty)]
Networks = Annotated[tuple[str, ...], BeforeValidator(_one_or_many(network)), AfterValidator(_not_empty)]
#: As Networks; there may be none.
Balancers = Annotated[tuple[str, ...], BeforeValidator(_one_or_many(network))]
Fingerprints = Annotated[tuple[str, ...], BeforeValidator(_one_or_many(fingerprint)), AfterValidator(_not_empty)]
#: Operations and groups of operations, by name.
AllowedOperations = Annotated[
    tuple[str, ...], BeforeValidator(_one_or_many(_allowed_operation)), AfterValidator(_not_empty)
]
RefusedOperations = Annotated[tuple[str, ...], BeforeValidator(_one_or_many(_operation))]
ObjectTypes = Annotated[tuple[str, ...], BeforeValidator(_one_or_many(_object_type)), AfterValidator(_not_empty)]
Pins = Annotated[tuple[str, ...], BeforeValidator(_one_or_many(fingerprint))]

#: Strict everywhere: "10" in quotes, or true, is a mistake and not a number. No time is longer than a day.
Seconds = Annotated[float, Field(strict=True, gt=0, le=86400, allow_inf_nan=False)]
#: Whole seconds, as the kernel takes them. Firewalls forget a silent connection within an hour.
KeepAlive = Annotated[int, Field(strict=True, ge=1, le=3600)]
TlsWorkerCount = Annotated[int | Literal["auto"], BeforeValidator(_tls_workers)]
Size = Annotated[int, Field(strict=True, ge=1024, le=64 * 1024 * 1024)]
#: The least is enough for an answer to a health check. The most is above that of a request, because the object that
#: a request registers comes back in an answer.
ResponseSize = Annotated[int, Field(strict=True, ge=64 * 1024, le=128 * 1024 * 1024)]
