"""The configuration: what is taken, what is refused and how that is said, and that config/ and the code agree."""

import re
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.config import (
    Address,
    Config,
    DeadlinesConfig,
    IdentityConfig,
    LimitsConfig,
    LogConfig,
    MatchConfig,
    PoolConfig,
    load,
    matches_many,
    summary,
    warnings,
)
from gateway.config.loading import examine
from gateway.config.mistakes import EXAMPLES
from gateway.config.model import LISTS, SECTIONS
from gateway.errors import ConfigError

EXAMPLE_FILES: Final = Path(__file__).parent.parent / "config"
PIN: Final = "ab" * 32

#: A small configuration, complete; the tests take it apart.
SMALL: Final = """
[[listeners]]
name = "kmip"
bind = "127.0.0.1:5696"
certificate = "server.pem"
private_key = "server.key"
client_ca = "clients-ca.pem"
tls_policy = "modern"

[[backends]]
name = "atlanta-001"
address = "127.0.0.1:15696"
ca = "kms-ca.pem"
server_name = "localhost"

[[identities]]
name = "everyone"
match = { subject_cn = "*" }
shared = true
certificate = "gateway-client.pem"
private_key = "gateway-client.key"

[admin]
bind = "127.0.0.1:9696"
"""

#: Further tables, to be put behind SMALL.
SECOND_LISTENER: Final = """
[[listeners]]
name = "second"
bind = "127.0.0.1:5697"
certificate = "server.pem"
private_key = "server.key"
client_ca = "clients-ca.pem"
"""
SECOND_BACKEND: Final = """
[[backends]]
name = "london-001"
address = "127.0.0.1:15697"
ca = "kms-ca.pem"
"""
SECOND_IDENTITY: Final = """
[[identities]]
name = "second"
match = { subject_cn = "second" }
certificate = "second.pem"
private_key = "second.key"
"""


# Throwaway certificates -----------------------------------------------------------------------------------------------


def make_pair(name: str, *, lasts: timedelta = timedelta(days=1)) -> tuple[bytes, bytes]:
    """A self-signed certificate and its private key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    end = datetime.now(UTC) + lasts
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - timedelta(days=365))
        .not_valid_after(end)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private_pem(key, serialization.NoEncryption())


def private_pem(key: ec.EllipticCurvePrivateKey, protection: serialization.KeySerializationEncryption) -> bytes:
    """The key in PEM."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


@cache
def pair(name: str) -> tuple[bytes, bytes]:
    """The one certificate and key of this name, for the files that only have to be there."""
    return make_pair(name)


def put_certificates(folder: Path, text: str) -> None:
    """Make every certificate and key that a configuration names: NAME.key belongs to NAME.pem."""
    for name, suffix in re.findall(r'"(?!mark\.)([^"]+)\.(pem|key)"', text):  # mark.key is the gateway's own to make
        (folder / name).parent.mkdir(exist_ok=True)
        file = folder / f"{name}.{suffix}"
        file.write_bytes(pair(name)[0 if suffix == "pem" else 1])
        file.chmod(0o644 if suffix == "pem" else 0o600)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with the files that SMALL and its further tables name."""
    put_certificates(tmp_path, SMALL + SECOND_IDENTITY)
    return tmp_path


@pytest.fixture(scope="module")
def kept_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``folder``, for examples by the hundred."""
    folder = tmp_path_factory.mktemp("kept")
    put_certificates(folder, SMALL)
    return folder


def write(folder: Path, text: str) -> Path:
    path = folder / "gateway.toml"
    path.write_text(text)
    return path


def mistakes_in(folder: Path, text: str) -> list[str]:
    """What load says, without the file's name, which must be in front of each."""
    path = write(folder, text)
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert all(mistake.startswith(f"{path}: ") for mistake in refused.value.mistakes)
    assert all("\n" not in mistake for mistake in refused.value.mistakes)
    return [mistake.removeprefix(f"{path}: ").replace(str(folder), "DIR") for mistake in refused.value.mistakes]


def changed(old: str, new: str, text: str = SMALL) -> str:
    """SMALL, with one thing changed."""
    assert text.count(old) == 1, f"{old!r} should be there once"
    return text.replace(old, new)


# What is taken --------------------------------------------------------------------------------------------------------


def test_a_small_file_is_completed_with_defaults(folder: Path) -> None:
    config = load(write(folder, SMALL))

    (listener,) = config.listeners
    assert (listener.name, listener.bind) == ("kmip", Address("127.0.0.1", 5696))
    assert (listener.tls_policy, listener.max_clients, listener.resumption_lifetime) == ("modern", 10_000, 3600)
    (backend,) = config.backends
    assert (backend.name, str(backend.address)) == ("atlanta-001", "127.0.0.1:15696")
    assert (backend.server_name, backend.pinned_sha256) == ("localhost", ())
    assert (backend.max_sessions, backend.probe, backend.addresses) == (64, "discover-versions", "auto")
    (identity,) = config.identities
    assert (identity.match.subject_cn, identity.shared) == (("*",), True)
    assert (config.pool, config.deadlines) == (PoolConfig(), DeadlinesConfig())
    assert (config.limits, config.log) == (LimitsConfig(), LogConfig())


def test_relative_paths_begin_at_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are absolute after load, from wherever the gateway was started; absolute paths stay."""
    write(folder, changed('"kms-ca.pem"', f'"{folder}/kms-ca.pem"'))
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")

    config = load(Path("../gateway.toml"))

    listener, backend = config.listeners[0], config.backends[0]
    assert listener.certificate.is_absolute()
    assert listener.private_key.samefile(folder / "server.key")
    assert listener.client_ca.samefile(folder / "clients-ca.pem")
    assert backend.ca == folder / "kms-ca.pem"


def test_the_sections_that_have_defaults_may_be_missing(folder: Path) -> None:
    config = load(write(folder, changed('[admin]\nbind = "127.0.0.1:9696"\n', "")))
    assert config.admin.bind == Address("127.0.0.1", 9696)


def test_admin_may_be_open_to_the_network(folder: Path) -> None:
    config = load(write(folder, changed("127.0.0.1:9696", "0.0.0.0:9696")))
    assert "other machines can reach" in "\n".join(summary(config))


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ('"Gateway.Example.com."', ("gateway.example.com",)),
        ('["gw-1", "192.0.2.7", "gw-1"]', ("gw-1", "192.0.2.7")),
        ("[]", ()),
    ],
)
def test_the_admin_port_may_have_further_names(folder: Path, hosts: str, expected: tuple[str, ...]) -> None:
    config = load(write(folder, changed("[admin]\n", f"[admin]\nhosts = {hosts}\n")))
    assert config.admin.hosts == expected


def test_the_server_name_is_the_address_host_unless_given(folder: Path) -> None:
    text = changed('"127.0.0.1:15696"', '"kms.example.com:5696"').replace('server_name = "localhost"', "")
    assert load(write(folder, text)).backends[0].server_name == "kms.example.com"


def test_proxy_protocol_and_limits_per_address_are_read_and_summed_up(folder: Path) -> None:
    text = (
        SMALL.replace('tls_policy = "modern"', 'proxy_protocol = true\nproxy_from = ["10.0.0.0/8", "2001:DB8::1"]')
        + "\n[per_address]\nmax_clients = 7\nipv6_prefix = 48\n"
    )
    config = load(write(folder, text))
    assert config.listeners[0].proxy_from == ("10.0.0.0/8", "2001:db8::1")
    assert (config.per_address.max_clients, config.per_address.ipv6_prefix) == (7, 48)
    assert "behind PROXY protocol from 10.0.0.0/8, 2001:db8::1" in "\n".join(summary(config))


def test_a_pinned_backend_needs_no_ca(folder: Path) -> None:
    """A fingerprint may be written as openssl prints it."""
    printed = ":".join(["AB"] * 32)
    config = load(write(folder, changed('ca = "kms-ca.pem"', f'pinned_sha256 = "{printed}"')))
    assert (config.backends[0].ca, config.backends[0].pinned_sha256) == (None, (PIN,))


def test_the_kinds_of_match_are_read_as_they_are_compared(folder: Path) -> None:
    match = f"""{{ san_dns = ["a.example", "b.example"], san_ip = ["10.1.0.0/16", "::0:1"], issuer = "CN=CA*",
        fingerprint_sha256 = "{PIN.upper()}" }}""".replace("\n", " ")
    config = load(write(folder, changed('{ subject_cn = "*" }', match)))
    assert config.identities[0].match == MatchConfig(
        san_dns=("a.example", "b.example"), san_ip=("10.1.0.0/16", "::1"), issuer=("CN=CA*",), fingerprint_sha256=(PIN,)
    )


def test_a_file_saved_with_a_byte_order_mark_is_read(folder: Path) -> None:
    path = folder / "gateway.toml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    assert load(path).listeners[0].name == "kmip"


def test_several_listeners_may_take_any_free_port(folder: Path) -> None:
    text = changed("127.0.0.1:5696", "127.0.0.1:0") + SECOND_LISTENER.replace("127.0.0.1:5697", "127.0.0.1:0")
    assert [listener.bind.port for listener in load(write(folder, text)).listeners] == [0, 0]


def test_old_cas_may_stay_in_a_bundle(folder: Path) -> None:
    old, _ = make_pair("old CA", lasts=-timedelta(days=1))
    (folder / "kms-ca.pem").write_bytes(old + pair("kms-ca")[0])
    load(write(folder, SMALL))


def test_a_key_may_stand_in_the_file_of_its_certificate(folder: Path) -> None:
    (folder / "server.pem").write_bytes(b"".join(pair("server")))
    load(write(folder, changed('"server.key"', '"server.pem"')))


def test_values_are_frozen(folder: Path) -> None:
    config = load(write(folder, SMALL))
    with pytest.raises(ValidationError, match="frozen"):
        config.log = LogConfig(level="debug")
    with pytest.raises(ValidationError, match="frozen"):
        config.listeners[0].max_clients = 1
    with pytest.raises(AttributeError):
        config.admin.bind.port = 1  # type: ignore[misc]
    assert {config: "can be a key"}[load(write(folder, SMALL))]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:5696", Address("localhost", 5696)),
        ("kms_1.example.com.:1", Address("kms_1.example.com.", 1)),
        ("0.0.0.0:0", Address("0.0.0.0", 0)),  # noqa: S104 - nothing is bound here
        ("[::1]:5696", Address("::1", 5696)),
        ("[2001:DB8:0::1]:5696", Address("2001:db8::1", 5696)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address


@given(st.text())
def test_an_address_is_read_or_refused_with_a_value_error(text: str) -> None:
    try:
        address = Address.parse(text)
    except ValueError:
        return
    assert Address.parse(str(address)) == address


# What is refused, and how that is said --------------------------------------------------------------------------------

#: What is changed in SMALL (-), to what (+), and every mistake that must be reported (=). Without a "-", the "+" stand
#: behind it. What is indented further belongs to the line above.
REFUSED: Final = r"""
near key
  - tls_policy
  + tls_polcy
  = listeners["kmip"].tls_polcy: unknown key "tls_polcy"; did you mean "tls_policy"?
near section
  - [admin]
  + [admim]
  = admim: unknown key "admim"; did you mean "admin"?
PROXY protocol without addresses
  - tls_policy = "modern"
  + proxy_protocol = true
  = listeners["kmip"].proxy_from: missing, and proxy_protocol is true: without it, anyone could send a header with any
    address; give the addresses of the load balancers, such as proxy_from = ["10.0.0.0/8"]
addresses without PROXY protocol
  - tls_policy = "modern"
  + proxy_from = "10.0.0.0/8"
  = listeners["kmip"].proxy_from: has no effect while proxy_protocol is false; set it to true, or leave this line out
burst without a rate
  - [admin]
  + [per_address]
  + handshake_burst = 10
  + [admin]
  = per_address.handshake_burst: has no effect while handshakes_per_second is 0, any number; set a rate, or leave this
    line out
PROXY protocol from a name
  - tls_policy = "modern"
  + proxy_from = ["balancer"]
  = listeners["kmip"].proxy_from: has "balancer"; give IP addresses or networks such as 10.1.0.0/16
far section
  - [admin]
  + [zoo]
  = zoo: unknown key "zoo"; known here are listeners, backends, identities, admin, pool, balancing, failover,
    replication, health, deadlines, limits, per_address, log
near key in match
  - subject_cn
  + subject_nc
  = identities["everyone"].match.subject_nc: unknown key "subject_nc"; did you mean "subject_cn"?
credential of nobody
  + [health]
  + credential = "nobody"
  = health.credential: "nobody" is the name of no identity; name one of "everyone"
key of another section
  + max_sessions = 5
  = admin.max_sessions: unknown key "max_sessions"; it belongs in [[backends]], and known here are bind, hosts
far key
  + 'pass word' = "do not repeat this"
  = admin."pass word": unknown key "pass word"; known here are bind, hosts
missing key
  - bind = "127.0.0.1:5696"
  +
  = listeners["kmip"].bind: missing; add a line such as bind = "127.0.0.1:5696"
missing name
  - name = "atlanta-001"
  +
  = backends[0].name: missing; add a line such as name = "a-name"
name for a person
  - "atlanta-001"
  + "Atlanta, first"
  = backends["Atlanta, first"].name: is "Atlanta, first"; use up to 64 letters, digits, dots, dashes and underscores
one bracket
  - [[listeners]]
  + [listeners]
  = listeners: must be a list of tables; write [[listeners]]
two brackets
  - [admin]
  + [[admin]]
  = admin: must be a table; write [admin]
match by a text
  - { subject_cn = "*" }
  + "*"
  = identities["everyone"].match: must be a table; write match = { subject_cn = "app-1" }
no text
  - "server.pem"
  + 5
  = listeners["kmip"].certificate: must be text; put it in quotes
empty text
  - "server.pem"
  + ""
  = listeners["kmip"].certificate: is empty; give it a value, or leave the line out
number in quotes
  + [pool]
  + min_idle = "1"
  + idle_timeout = "25"
  = pool.min_idle: must be a whole number; write it without quotes or a decimal point
  = pool.idle_timeout: must be a number; write it without quotes
true for a number
  + [limits]
  + max_depth = true
  = limits.max_depth: must be a whole number; write it without quotes or a decimal point
out of bounds
  + [limits]
  + max_request_size = 1_000_000_000
  + max_depth = 4
  + [pool]
  + idle_timeout = 0
  = pool.idle_timeout: 0 is too little; give more than 0
  = limits.max_request_size: 1000000000 is too much; give at most 67108864
  = limits.max_depth: 4 is too little; give at least 8
endless
  + [pool]
  + idle_timeout = inf
  + max_lifetime = nan
  = pool.idle_timeout: must be a number; write one that is not inf or nan
  = pool.max_lifetime: must be a number; write one that is not inf or nan
longer than a minute
  + [deadlines]
  + request = 60
  = deadlines.request: 60 is too much; at most 55 is allowed, because key managers refuse requests that are a minute
    old
word for true
  - shared = true
  + shared = "yes"
  = identities["everyone"].shared: must be true or false; write one of them, without quotes
unknown word
  - "modern"
  + "moderm"
  = listeners["kmip"].tls_policy: "moderm" is not known; write "modern", "compatible" or "legacy"
fraction of a second
  + [pool]
  + tcp_keepalive = 2.5
  = pool.tcp_keepalive: must be a whole number; write it without quotes or a decimal point
silence that no firewall waits for
  + [pool]
  + tcp_keepalive = 7200
  + tcp_user_timeout = 14400
  = pool.tcp_keepalive: 7200 is too much; give at most 3600
unknown number of key managers
  - ca = "kms-ca.pem"
  + addresses = "two"
  + ca = "kms-ca.pem"
  = backends["atlanta-001"].addresses: "two" is not known; write "auto", "one" or "each"
no port
  - "127.0.0.1:5696"
  + "127.0.0.1"
  = listeners["kmip"].bind: has no port; write it as "127.0.0.1:5696"
no host
  - "127.0.0.1:5696"
  + "*:5696"
  = listeners["kmip"].bind: has no host; 0.0.0.0 is every IPv4 address of this machine, [::] every IPv6 address
high port
  - "127.0.0.1:5696"
  + "127.0.0.1:65536"
  = listeners["kmip"].bind: has the port "65536"; a port is a number from 0 to 65535
no brackets
  - "127.0.0.1:5696"
  + "::1:5696"
  = listeners["kmip"].bind: has several colons; write an IPv6 address in brackets, as "[::1]:5696"
wrong IPv4 address
  - "127.0.0.1:5696"
  + "127.0.0.256:5696"
  = listeners["kmip"].bind: has the host "127.0.0.256", which is no IPv4 address; correct it
wrong IPv6 address
  - "127.0.0.1:5696"
  + "[::x]:5696"
  = listeners["kmip"].bind: has "::x" in brackets, which is no IPv6 address; correct it
wrong host name
  - "127.0.0.1:15696"
  + "-kms:15696"
  = backends["atlanta-001"].address: has the host "-kms", which is no host name; give a host name or an IP address
host name with an empty label
  - "127.0.0.1:15696"
  + "kms..:15696"
  = backends["atlanta-001"].address: has the host "kms..", which is no host name; give a host name or an IP address
URL for an address
  - "127.0.0.1:15696"
  + "https://user:secret@kms:15696/"
  = backends["atlanta-001"].address: is not host:port; leave out everything but the host and the port
backend without a port
  - "127.0.0.1:15696"
  + "127.0.0.1:0"
  = backends["atlanta-001"].address: has the port 0; give the port that the key manager listens on, usually 5696
server name with a port
  - "localhost"
  + "localhost:5696"
  = backends["atlanta-001"].server_name: is no host name; leave out everything but the host
admin name with a port
  - [admin]
  + [admin]
  + hosts = "gateway:9696"
  = admin.hosts: has "gateway:9696"; give host names alone, without a port or a path
admin name that is no name
  - [admin]
  + [admin]
  + hosts = ["gateway", "*"]
  = admin.hosts: has the host "*", which is no host name; give a host name or an IP address
neither CA nor pin
  - ca = "kms-ca.pem"
  +
  = backends["atlanta-001"].ca: missing; name a file with the CA that issued the key manager's certificate, or pin
    the certificate itself with pinned_sha256
wrong pins
  - ca = "kms-ca.pem"
  + pinned_sha256 = ["ab:cd"]
  = backends["atlanta-001"].pinned_sha256: has a fingerprint of 4 digits, and SHA-256 has 64; `openssl x509 -noout
    -fingerprint -sha256 -in FILE` prints it
pins that aren't hexadecimal
  - ca = "kms-ca.pem"
  + pinned_sha256 = "sha256 Fingerprint=AB"
  = backends["atlanta-001"].pinned_sha256: has "sha256 Fingerprint=AB", which is not hexadecimal; `openssl x509
    -noout -fingerprint -sha256 -in FILE` prints it
empty match
  - { subject_cn = "*" }
  + { }
  = identities["everyone"].match: is empty, and would match everyone; give at least one of subject_cn, san_dns,
    san_email, san_uri, san_ip, issuer, fingerprint_sha256
empty values in match
  - { subject_cn = "*" }
  + { subject_cn = [], san_dns = [""] }
  = identities["everyone"].match.subject_cn: is empty; give at least one value, or leave the line out
  = identities["everyone"].match.san_dns: is empty; give it a value, or leave the line out
wrong networks
  - { subject_cn = "*" }
  + { san_ip = "10.1.0.0/33" }
  = identities["everyone"].match.san_ip: has "10.1.0.0/33"; give IP addresses or networks such as 10.1.0.0/16
address within a network
  - { subject_cn = "*" }
  + { san_ip = "10.1.2.3/16" }
  = identities["everyone"].match.san_ip: has "10.1.2.3/16", an address within a network; write 10.1.0.0/16
key in the file
  - "server.key"
  + "-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----"
  = listeners["kmip"].private_key: holds the certificate or key itself; store it in a file and give the file's path
no such file
  - "server.pem"
  + "sever.pem"
  = listeners["kmip"].certificate: there is no file DIR/sever.pem; correct the path, which is relative to this file
a directory
  - "kms-ca.pem"
  + "."
  = backends["atlanta-001"].ca: DIR is not a file; give the path of a file in PEM
the configuration itself
  - "kms-ca.pem"
  + "gateway.toml"
  = backends["atlanta-001"].ca: DIR/gateway.toml is not PEM; convert it (`openssl x509` or `openssl pkey`, with
    -inform DER)
key for a certificate
  - "server.pem"
  + "server.key"
  = listeners["kmip"].certificate: DIR/server.key holds a private key; give a file of certificates in PEM
certificate for a key
  - "server.key"
  + "server.pem"
  = listeners["kmip"].private_key: DIR/server.pem holds no private key; give a file with a private key in PEM
key of another certificate
  - "server.key"
  + "gateway-client.key"
  = listeners["kmip"].private_key: DIR/gateway-client.key does not belong to the certificate in DIR/server.pem; give
    the key it was issued for
name used twice
  + [[backends]]
  + name = "atlanta-001"
  + address = "127.0.0.1:15697"
  + ca = "kms-ca.pem"
  = backends[1].name: "atlanta-001" is the name of backends[0] too; give each its own name
address used twice
  + [[backends]]
  + name = "london-001"
  + address = "127.0.0.1:15696"
  + ca = "kms-ca.pem"
  = backends["london-001"].address: 127.0.0.1:15696 is the address of backends["atlanta-001"] too; list every
    key manager once
port bound twice
  + [[listeners]]
  + name = "second"
  + bind = "127.0.0.1:5696"
  + certificate = "server.pem"
  + private_key = "server.key"
  + client_ca = "clients-ca.pem"
  = listeners["second"].bind: 127.0.0.1:5696 is bound by listeners["kmip"] too; give each its own port
port bound on all addresses
  + [[listeners]]
  + name = "second"
  + bind = "0.0.0.0:5696"
  + certificate = "server.pem"
  + private_key = "server.key"
  + client_ca = "clients-ca.pem"
  = listeners["second"].bind: 0.0.0.0:5696 overlaps 127.0.0.1:5696 of listeners["kmip"]; give each its own port
port bound by admin
  - 127.0.0.1:9696
  + 127.0.0.1:5696
  = admin.bind: 127.0.0.1:5696 is bound by listeners["kmip"] too; give each its own port
certificate shown twice
  + [[identities]]
  + name = "second"
  + match = { subject_cn = "second" }
  + certificate = "gateway-client.pem"
  + private_key = "gateway-client.key"
  = identities["second"].certificate: is what the gateway shows for identities["everyone"] too: the clients of both
    would see, use and destroy each other's keys; give each its own, or say shared = true in both if that is meant
more idle than allowed
  - server_name = "localhost"
  + max_sessions = 2
  + [pool]
  + min_idle = 3
  = pool.min_idle: 3 is more than max_sessions = 2 of backends["atlanta-001"]; lower the one or raise the other
parts longer than the whole
  + [deadlines]
  + request = 2.5
  = deadlines.connect: 3 s is longer than deadlines.request = 2.5 s, which it is a part of; lower the one or raise
    the other
  = pool.queue_timeout: 5 s is longer than deadlines.request = 2.5 s, which it is a part of; lower the one or raise
    the other
"""


def read_cases(text: str) -> list[Any]:
    cases = []
    for case in re.split(r"\n(?=\w)", text.strip()):
        name, *rows = re.sub(r"\n {4}", " ", case).split("\n")
        removed, added, said = ([row[4:] for row in rows if row[2] == mark] for mark in "-+=")
        cases.append(pytest.param("\n".join(removed), "\n".join(added), said, id=name))
    return cases


def unfolded(text: str) -> list[str]:
    """Lines, where what is indented belongs to the line above."""
    return re.sub(r"\n +", " ", dedent(text).strip()).split("\n")


@pytest.mark.parametrize(("old", "new", "expected"), read_cases(REFUSED))
def test_a_mistake_is_said_in_plain_words(folder: Path, old: str, new: str, expected: list[str]) -> None:
    text = SMALL.replace(old, new, 1) if old else SMALL + new
    assert text != SMALL
    assert mistakes_in(folder, text) == expected


def test_an_empty_file_is_told_what_it_needs(folder: Path) -> None:
    assert mistakes_in(folder, "") == [
        "listeners: missing; add [[listeners]]",
        "backends: missing; add [[backends]]",
        "identities: missing; add [[identities]]",
    ]
    assert mistakes_in(folder, "listeners = []\nbackends = [1]\nidentities = [{}]") == [
        "listeners: there is none; at least one is needed",
        "backends[0]: must be a table; write [[backends]]",
        'identities[0].name: missing; add a line such as name = "a-name"',
        'identities[0].match: missing; add a line such as match = { subject_cn = "app-1" }',
        'identities[0].certificate: missing; add a line such as certificate = "certs/own.pem"',
        'identities[0].private_key: missing; add a line such as private_key = "certs/own.key"',
    ]


def test_every_mistake_is_reported_at_once(folder: Path) -> None:
    """Of single settings, of the files they name, and of settings that contradict each other, in one table or many."""
    (folder / "clients-ca.pem").unlink()
    text = (
        SMALL.replace('"modern"', '"modren"')
        .replace("shared = true\n", "")
        .replace('"gateway-client.key"', '"server.key"')
        .replace('"127.0.0.1:9696"', '"127.0.0.1:5696"')
        + SECOND_BACKEND.replace("london-001", "atlanta-001").replace("ca =", "cca =")
        + "[deadlines]\nrequest = 4\nconect = 1\n[limits]\nmax_depth = 1000\n"
    )
    assert mistakes_in(folder, text) == unfolded("""
        listeners["kmip"].client_ca: there is no file DIR/clients-ca.pem; correct the path, which is relative to
            this file
        listeners["kmip"].tls_policy: "modren" is not known; write "modern", "compatible" or "legacy"
        backends[1].ca: missing; name a file with the CA that issued the key manager's certificate, or pin the
            certificate itself with pinned_sha256
        backends[1].cca: unknown key "cca"; did you mean "ca"?
        identities["everyone"].shared: is false, but match can match more than one client (subject_cn has a
            wildcard), and the gateway shows the key managers one certificate for all of them: they would see, use and
            destroy each other's keys; narrow match to one literal value, or say shared = true if that is meant
        identities["everyone"].private_key: DIR/server.key does not belong to the certificate in
            DIR/gateway-client.pem; give the key it was issued for
        deadlines.conect: unknown key "conect"; did you mean "connect"?
        limits.max_depth: 1000 is too much; give at most 128
        backends[1].name: "atlanta-001" is the name of backends[0] too; give each its own name
        admin.bind: 127.0.0.1:5696 is bound by listeners["kmip"] too; give each its own port
        pool.queue_timeout: 5 s is longer than deadlines.request = 4 s, which it is a part of; lower the one or
            raise the other
    """)


def test_a_wrong_setting_is_not_held_against_others(folder: Path) -> None:
    """What is wrong by itself is corrected first; a comparison with it would be a second, false mistake."""
    text = changed("[admin]", "[deadlines]\nrequest = 600\n[pool]\nmin_idle = -1\nqueue_timeout = 50\n[admin]")
    assert [mistake.partition(":")[0] for mistake in mistakes_in(folder, text)] == [
        "pool.min_idle",
        "deadlines.request",
    ]


TOML_VALUES: Final = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(), st.text(), st.datetimes()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
)


@settings(deadline=None)  # it reads files
@given(st.data())
def test_any_value_anywhere_is_taken_or_refused_in_lines(kept_folder: Path, data: st.DataObject) -> None:
    """Whatever stands in a file, the answer is a Config or a ConfigError, and never another exception."""
    document = tomllib.loads(SMALL + SECOND_BACKEND)
    where: Any = document
    while isinstance(where, dict | list) and where:
        key = data.draw(st.sampled_from(sorted(where) if isinstance(where, dict) else range(len(where))))
        if not isinstance(where[key], dict | list) or data.draw(st.booleans()):
            break
        where = where[key]
    where[key] = data.draw(TOML_VALUES)
    if isinstance(where, dict) and data.draw(st.booleans()):
        where[data.draw(st.text())] = data.draw(TOML_VALUES)

    mistakes = ["taken"]
    try:
        examine(document, kept_folder / "gateway.toml")
    except ConfigError as refused:
        mistakes = refused.mistakes

    assert mistakes
    assert all(mistake.isprintable() for mistake in mistakes)


def test_a_listener_on_the_port_of_the_default_admin_is_refused(folder: Path) -> None:
    text = changed('[admin]\nbind = "127.0.0.1:9696"\n', "").replace("127.0.0.1:5696", "localhost:9696")
    load(write(folder, text))  # localhost may be ::1
    assert mistakes_in(folder, text.replace("localhost:9696", "0.0.0.0:9696")) == [
        'admin.bind: 127.0.0.1:9696 overlaps 0.0.0.0:9696 of listeners["kmip"]; give each its own port'
    ]


def test_both_families_may_be_bound_with_one_port(folder: Path) -> None:
    text = changed("127.0.0.1:5696", "0.0.0.0:5696") + SECOND_LISTENER.replace("127.0.0.1:5697", "[::]:5696")
    load(write(folder, text))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"[admin]\nbind\n", "line 2, column 5: is not TOML: expected '=' after a key in a key/value pair; correct it"),
        (b"[admin]\n[admin]", "line 2, column 7: is not TOML: cannot declare ('admin',) twice; correct it"),
        (b"[admin", "end of document: is not TOML: expected ']' at the end of a table declaration; correct it"),
        (b"a = " + b"9" * 5000, "is not TOML: "),
        (b"a = " + b"[" * 50_000, "is nested too deeply; write it without nesting"),
        (b"# caf\xc3\xa9\n# caf\xe9\n", "line 2: is not UTF-8; save the file in UTF-8"),
    ],
)
def test_what_is_not_toml_is_refused_with_its_place(tmp_path: Path, data: bytes, expected: str) -> None:
    path = tmp_path / "gateway.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as refused:
        load(path)
    (mistake,) = refused.value.mistakes
    assert mistake.startswith(f"{path}: {expected}")


def test_a_configuration_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert refused.value.mistakes == [f"{path}: there is no such file; give the path of a configuration"]
    with pytest.raises(ConfigError, match=r"can't be read \(Is a directory\)"):
        load(tmp_path)


# The files that a configuration names ---------------------------------------------------------------------------------


def test_an_expired_certificate_is_refused(folder: Path) -> None:
    expired, key = make_pair("gateway", lasts=-timedelta(days=2))
    (folder / "server.pem").write_bytes(expired)
    (folder / "server.key").write_bytes(key)
    (folder / "kms-ca.pem").write_bytes(expired)
    day = f"{x509.load_pem_x509_certificate(expired).not_valid_after_utc:%Y-%m-%d}"
    assert mistakes_in(folder, SMALL) == unfolded(f"""
        listeners["kmip"].certificate: DIR/server.pem holds the certificate CN=gateway, which expired on {day};
            renew it
        backends["atlanta-001"].ca: DIR/kms-ca.pem holds the certificate CN=gateway, which expired on {day}, and
            none that is valid; renew it
    """)


def test_an_expired_certificate_further_up_the_chain_is_refused(folder: Path) -> None:
    expired, _ = make_pair("intermediate CA", lasts=-timedelta(days=2))
    (folder / "server.pem").write_bytes(pair("server")[0] + expired)
    assert "holds the certificate CN=intermediate CA, which expired" in mistakes_in(folder, SMALL)[0]


def put_second(folder: Path, *, lasts: timedelta) -> datetime:
    """Give the second identity a certificate of a year that ends after so long. Returns when that is."""
    certificate, key = make_pair("second", lasts=lasts)
    (folder / "second.pem").write_bytes(certificate)
    (folder / "second.key").write_bytes(key)
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


def test_an_identity_whose_certificate_has_expired_is_a_warning(folder: Path) -> None:
    ended = put_second(folder, lasts=-timedelta(days=2))
    config = load(write(folder, SMALL + SECOND_IDENTITY))

    assert warnings(config, datetime.now(UTC)) == unfolded(f"""
        identities["second"].certificate: {folder}/second.pem ended on {ended:%Y-%m-%d}; renew it; until then, key
            managers may refuse this identity
    """)
    (line,) = (line for line in summary(config) if "second.pem until" in line)
    assert line.endswith(": ENDED, renew it")


def test_an_identity_whose_certificate_is_not_valid_yet_is_a_warning(folder: Path) -> None:
    ends = put_second(folder, lasts=timedelta(days=366))
    config = load(write(folder, SMALL + SECOND_IDENTITY))

    begins = ends - timedelta(days=365)
    assert warnings(config, datetime.now(UTC)) == unfolded(f"""
        identities["second"].certificate: {folder}/second.pem is not valid before {begins:%Y-%m-%d %H:%M} UTC; check
            this machine's clock, or replace it; until then, key managers may refuse this identity
    """)
    later = warnings(config, begins + timedelta(minutes=1))
    assert not any("second" in warning for warning in later)


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (0o600, None),
        (0o400, None),
        (0o640, None),
        (0o440, None),
        (0o660, "changed by its group"),
        (0o644, "read by every user of this machine"),
        (0o604, "read by every user of this machine"),
        (0o602, "changed by every user of this machine"),
        (0o666, "changed by every user of this machine"),
    ],
)
def test_a_private_key_that_too_many_can_use_is_a_warning(folder: Path, mode: int, said: str | None) -> None:
    (folder / "server.key").chmod(mode)

    found = warnings(load(write(folder, SMALL)), datetime.now(UTC))

    file = folder / "server.key"
    told = f'listeners["kmip"].private_key: {file} can be {said} (mode {mode:04o}); chmod 0600 {file}, or 0640'
    assert found == ([] if said is None else [told])


@pytest.mark.parametrize(("marks", "warned"), [("true", True), ("false", False)])
def test_a_mark_key_that_others_can_read_is_a_warning_if_it_is_used(folder: Path, marks: str, warned: bool) -> None:
    key = folder / "mark.key"
    key.write_text("00" * 32)
    key.chmod(0o644)

    found = warnings(load(write(folder, SMALL + f"[replication]\nmarks = {marks}\n")), datetime.now(UTC))

    assert [warning.partition(":")[0] for warning in found] == ["replication.mark_key_file"] * warned


def test_a_key_that_two_settings_share_is_warned_about_once(folder: Path) -> None:
    (folder / "server.key").chmod(0o666)
    second = SECOND_LISTENER.replace("second.pem", "server.pem").replace("second.key", "server.key")
    assert len(warnings(load(write(folder, SMALL + second)), datetime.now(UTC))) == 1


def test_an_expired_certificate_up_an_identity_s_chain_counts(folder: Path) -> None:
    expired, _ = make_pair("intermediate CA", lasts=-timedelta(days=2))
    (folder / "second.pem").write_bytes(pair("second")[0] + expired)
    assert len(warnings(load(write(folder, SMALL + SECOND_IDENTITY)), datetime.now(UTC))) == 1


def test_if_the_certificates_of_all_identities_have_expired_that_is_a_mistake(folder: Path) -> None:
    day = f"{put_second(folder, lasts=-timedelta(days=2)):%Y-%m-%d}"
    expired, key = make_pair("first", lasts=-timedelta(days=2))
    (folder / "gateway-client.pem").write_bytes(expired)
    (folder / "gateway-client.key").write_bytes(key)
    assert mistakes_in(folder, SMALL + SECOND_IDENTITY) == unfolded(f"""
        identities["everyone"].certificate: DIR/gateway-client.pem holds the certificate CN=first, which expired on
            {day}; renew it
        identities["second"].certificate: DIR/second.pem holds the certificate CN=second, which expired on {day};
            renew it
    """)


def test_a_chain_in_the_wrong_order_is_told_so(folder: Path) -> None:
    (folder / "server.pem").write_bytes(pair("clients-ca")[0] + pair("server")[0])
    assert mistakes_in(folder, SMALL) == unfolded("""
        listeners["kmip"].private_key: DIR/server.key does not belong to the first certificate in DIR/server.pem;
            put the key's own one first
    """)


def test_a_key_with_a_password_is_refused(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "server.key").write_bytes(private_pem(key, serialization.BestAvailableEncryption(b"password")))
    assert mistakes_in(folder, SMALL) == unfolded("""
        listeners["kmip"].private_key: DIR/server.key is protected by a password, which is not supported; store the
            key without one (`openssl pkey -in OLD -out NEW`) and let the file's permissions guard it
    """)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "DIR/kms-ca.pem is not PEM"),
        (b"\x30\x82\x01\x01", "DIR/kms-ca.pem is not PEM"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "holds no certificate that can be read"),
        (b"-----BEGIN CERTIFICATE-----\nAA", "holds no certificate that can be read"),
    ],
)
def test_a_certificate_that_is_none_is_refused(folder: Path, data: bytes, expected: str) -> None:
    (folder / "kms-ca.pem").write_bytes(data)
    (mistake,) = mistakes_in(folder, SMALL)
    assert expected in mistake


def test_a_broken_key_is_refused_without_showing_it(folder: Path) -> None:
    (folder / "server.key").write_bytes(b"-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----\n")
    assert mistakes_in(folder, SMALL) == unfolded("""
        listeners["kmip"].private_key: DIR/server.key holds no private key that can be read; give a file with a
            private key in PEM
    """)


def test_a_file_that_can_not_be_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without permission; simulated, since tests may run as root, who may read everything."""
    read = Path.read_bytes

    def guarded(path: Path) -> bytes:
        if path.name == "server.key":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    assert mistakes_in(folder, SMALL) == unfolded("""
        listeners["kmip"].private_key: DIR/server.key can't be read (Permission denied); let the gateway's user read
            it
    """)


@pytest.mark.parametrize("setting", ["certificate", "name", "tls_policy", "bind"])
def test_a_secret_in_the_wrong_place_is_not_repeated(folder: Path, setting: str) -> None:
    secret = "-----BEGIN PRIVATE KEY-----\\nMIGHAgEAMBMG\\n-----END PRIVATE KEY-----"
    text = re.sub(rf'^{setting} = ".*"$', lambda _: f'{setting} = "{secret}"', SMALL, count=1, flags=re.MULTILINE)
    assert "MIGH" not in "\n".join(mistakes_in(folder, text))


# Who shares a credential ----------------------------------------------------------------------------------------------

SINGLE: Final = [
    MatchConfig(subject_cn=("app-1",)),
    MatchConfig(san_dns=("app-1.example.com",)),
    MatchConfig(san_email=("app@example.com",)),
    MatchConfig(san_uri=("spiffe://example.com/app",)),
    MatchConfig(san_ip=("10.1.2.3",)),
    MatchConfig(san_ip=("10.1.2.3/32",)),
    MatchConfig(san_ip=("2001:db8::1/128",)),
    MatchConfig(fingerprint_sha256=(PIN,)),
    MatchConfig(subject_cn=("app-1",), issuer=("CN=*",)),
    MatchConfig(subject_cn=("*",), fingerprint_sha256=(PIN,)),
    MatchConfig(subject_cn=("a", "b"), san_dns=("app-1.example.com",)),
    MatchConfig(subject_cn=("app-1", "app-1")),
]
MANY: Final = [
    (MatchConfig(subject_cn=("*",)), "subject_cn has a wildcard"),
    (MatchConfig(subject_cn=("app-?",)), "subject_cn has a wildcard"),
    (MatchConfig(subject_cn=("app-[12]",)), "subject_cn has a wildcard"),
    (MatchConfig(san_dns=("*.example.com",)), "san_dns has a wildcard"),
    (MatchConfig(san_email=("*@example.com",)), "san_email has a wildcard"),
    (MatchConfig(san_uri=("spiffe://*",)), "san_uri has a wildcard"),
    (MatchConfig(subject_cn=("a", "b")), "subject_cn has 2 values"),
    (MatchConfig(fingerprint_sha256=(PIN, "cd" * 32)), "fingerprint_sha256 has 2 values"),
    (MatchConfig(san_ip=("10.1.2.0/31",)), "san_ip is a network"),
    (MatchConfig(san_ip=("2001:db8::/64",)), "san_ip is a network"),
    (MatchConfig(issuer=("CN=CA",)), "issuer alone stands for everyone whom it certifies"),
    (MatchConfig(subject_cn=("a*",), san_ip=("10.0.0.0/8",)), "subject_cn has a wildcard, san_ip is a network"),
    (MatchConfig(subject_cn=("a*",), issuer=("CN=CA",)), "subject_cn has a wildcard"),
]


def make_identity(match: MatchConfig, *, shared: bool) -> IdentityConfig:
    return IdentityConfig(name="x", match=match, shared=shared, certificate=Path("c"), private_key=Path("k"))


@pytest.mark.parametrize("match", SINGLE, ids=repr)
def test_a_match_with_one_literal_value_is_one_client(match: MatchConfig) -> None:
    assert not matches_many(match)
    assert not make_identity(match, shared=False).shared
    assert make_identity(match, shared=True).shared


@pytest.mark.parametrize(("match", "why"), MANY, ids=repr)
def test_a_match_for_many_must_say_that_they_share(match: MatchConfig, why: str) -> None:
    assert matches_many(match)
    assert make_identity(match, shared=True).shared
    with pytest.raises(ValidationError, match=re.escape(f"({why})")):
        make_identity(match, shared=False)


KEYS: Final = tuple(MatchConfig.model_fields)
LITERAL: Final = st.text("abc.-", min_size=1)
WIDE: Final = st.one_of(
    st.builds("{}{}".format, LITERAL, st.sampled_from("*?[")),
    st.lists(LITERAL, min_size=2, max_size=4, unique=True),
)


@given(st.dictionaries(st.sampled_from(["subject_cn", "san_dns", "san_email", "san_uri", "issuer"]), WIDE, min_size=1))
def test_no_combination_of_wide_keys_is_one_client(match: dict[str, Any]) -> None:
    assert matches_many(MatchConfig.model_validate(match))


@given(
    st.dictionaries(st.sampled_from(["subject_cn", "san_dns", "issuer"]), st.one_of(WIDE, LITERAL)),
    st.sampled_from(["san_email", "san_uri"]),
    LITERAL,
)
def test_one_literal_key_makes_any_combination_one_client(match: dict[str, Any], key: str, value: str) -> None:
    assert not matches_many(MatchConfig.model_validate(match | {key: value}))


def test_two_identities_may_show_one_certificate_if_both_are_shared(folder: Path) -> None:
    second = SECOND_IDENTITY.replace("second.", "gateway-client.") + "shared = true\n"
    assert len(load(write(folder, SMALL + second)).identities) == 2


# Whose names a rule matches -------------------------------------------------------------------------------------------

#: A door for the clients of another CA.
PARTNERS: Final = SECOND_LISTENER.replace('"second"', '"partners"').replace("clients-ca.pem", "partners-ca.pem")
ONE_NAME: Final = changed('match = { subject_cn = "*" }\nshared = true', 'match = { subject_cn = "payroll" }')
TWO_NAMES: Final = (
    'identities["everyone"].listeners: {}"kmip" and "partners" trust different CAs, so that two clients of'
)


def test_where_listeners_trust_different_cas_a_rule_says_whose_names_it_means(folder: Path) -> None:
    """A "payroll" of either CA would be one client to the key managers: each could get the other's keys."""
    put_certificates(folder, PARTNERS)
    text = ONE_NAME + PARTNERS
    assert mistakes_in(folder, text) == [
        TWO_NAMES.format("missing, and ")
        + " one name can match; name the listeners it is for, or match a fingerprint_sha256"
    ]
    both = changed('name = "everyone"', 'name = "everyone"\nlisteners = ["kmip", "partners"]', text)
    assert mistakes_in(folder, both) == [
        TWO_NAMES.format("")
        + " one name can match; name listeners with the same CAs, or say shared = true if that is meant"
    ]


@pytest.mark.parametrize(
    "said",
    [
        'match = { subject_cn = "payroll" }\nlisteners = "kmip"',
        'match = { subject_cn = "payroll" }\nlisteners = ["partners"]',
        'match = { subject_cn = "payroll" }\nlisteners = ["kmip", "partners"]\nshared = true',
        f'match = {{ fingerprint_sha256 = "{PIN}" }}',
    ],
)
def test_a_rule_may_say_so_by_listeners_or_by_a_fingerprint(folder: Path, said: str) -> None:
    put_certificates(folder, PARTNERS)
    load(write(folder, changed('match = { subject_cn = "payroll" }', said, ONE_NAME) + PARTNERS))


def test_the_certificates_in_ca_files_count_and_not_the_files(folder: Path) -> None:
    (folder / "partners-ca.pem").write_bytes(pair("clients-ca")[0])
    load(write(folder, ONE_NAME + PARTNERS))
    (folder / "partners-ca.pem").write_bytes(pair("clients-ca")[0] + pair("partners-ca")[0])
    assert len(mistakes_in(folder, ONE_NAME + PARTNERS)) == 1
    (folder / "clients-ca.pem").write_bytes(pair("partners-ca")[0] + pair("clients-ca")[0])
    load(write(folder, ONE_NAME + PARTNERS))


def test_a_listener_that_a_rule_names_is_there(folder: Path) -> None:
    text = changed("shared = true", 'shared = true\nlisteners = ["kmip", "kmpi"]')
    assert mistakes_in(folder, text) == [
        'identities["everyone"].listeners: "kmpi" is the name of no listener; name some of "kmip"'
    ]


def test_the_summary_says_where_a_rule_holds(folder: Path) -> None:
    lines = summary(load(write(folder, changed("shared = true", 'shared = true\nlisteners = "kmip"'))))
    assert (
        "identity everyone for subject_cn * on kmip: all of them one client to the key managers,"
        " shown as gateway-client.pem"
    ) in lines


# How long messages may be ---------------------------------------------------------------------------------------------


def test_what_can_be_registered_can_be_got_again_and_held_beside_its_request(folder: Path) -> None:
    assert LimitsConfig().max_response_size > LimitsConfig().max_request_size
    limits = "[limits]\nmax_request_size = 1000000\nmax_response_size = 1000000\nmax_buffered = 2499999\n"
    assert mistakes_in(folder, SMALL + limits) == unfolded("""
        limits.max_response_size: 1000000 is too little for max_request_size = 1000000: a key could be registered that
            can never be got again; give at least 1004096
        limits.max_buffered: 2499999 is too little for max_request_size = 1000000 and max_response_size = 1000000
            together, which one client may need, and a fifth for the others; give at least 2500000
    """)
    load(write(folder, SMALL + "[limits]\nmax_response_size = 1052672\nmax_buffered = 2626560\n"))


# Connections whose other end is gone ----------------------------------------------------------------------------------


def test_one_lost_packet_may_not_end_a_connection(folder: Path) -> None:
    """Once the user timeout has passed, Linux ends a connection at the first keep-alive probe without an answer."""
    text = changed('tls_policy = "modern"', "tcp_keepalive = 61") + SECOND_LISTENER + "tcp_user_timeout = 119.5\n"
    assert mistakes_in(folder, text + "[pool]\ntcp_keepalive = 15\n") == unfolded("""
        listeners["kmip"].tcp_user_timeout: 120 s is less than twice tcp_keepalive = 61 s: one lost packet could end a
            connection that is idle; give at least 122, or lower tcp_keepalive
        listeners["second"].tcp_user_timeout: 119.5 s is less than twice tcp_keepalive = 60 s: one lost packet could end
            a connection that is idle; give at least 120, or lower tcp_keepalive
        pool.tcp_user_timeout: 10 s is less than twice tcp_keepalive = 15 s: one lost packet could end a connection that
            is idle; give at least 30, or lower tcp_keepalive
    """)
    config = load(write(folder, SMALL + "[pool]\ntcp_keepalive = 15\ntcp_user_timeout = 30\n"))
    assert (config.pool.tcp_keepalive, config.pool.tcp_user_timeout) == (15, 30.0)


# What is told to humans -----------------------------------------------------------------------------------------------


def test_the_summary_says_who_meets_whom(folder: Path) -> None:
    text = changed('ca = "kms-ca.pem"', f'ca = "kms-ca.pem"\npinned_sha256 = "{PIN}"') + SECOND_IDENTITY
    legacy = SECOND_LISTENER + 'tls_policy = "legacy"\n'
    lines = summary(load(write(folder, text + legacy)))
    certificates = [line for line in lines if line.startswith("certificates in ")]
    assert [line.split()[2] for line in certificates] == [
        "server.pem",
        "clients-ca.pem",
        "kms-ca.pem",
        "gateway-client.pem",
        "second.pem",
    ]
    assert all(line.endswith(": ENDS IN 0 DAYS, renew it") for line in certificates)
    assert [line for line in lines if line not in certificates] == unfolded("""
        listener kmip on 127.0.0.1:5696: 10000 clients at the most, TLS policy modern
        listener second on 127.0.0.1:5697: 10000 clients at the most, TLS policy legacy, which lets in broken versions
            of TLS
        backend atlanta-001 at 127.0.0.1:15696: 64 sessions at the most, known as localhost by the CA in kms-ca.pem
            and 1 pinned certificate(s)
        identity everyone for subject_cn *: all of them one client to the key managers, shown as gateway-client.pem
        identity second for subject_cn second: one client, shown as second.pem
        admin on 127.0.0.1:9696
        limits: requests of 1 MiB, responses of 2 MiB, 1000 batch items, 32 levels
        deadlines: 30 s for a request, 3 s of it to connect, 5 s of it in the queue; 10 s to drain
        while no key manager can be reached: new connections are refused
        key managers have the same objects at any time; marks by mark.key
        log: info and above, as text
    """)


def test_the_summary_says_what_is_done_about_late_replicas(folder: Path) -> None:
    replication = 'mode = "async"\nread_your_writes_window = 2.5\nfallback_on_not_found = false\nmarks = false\n'
    late = f"{SMALL}[replication]\n{replication}"
    assert (
        "key managers hear of changes late: a client stays for 2.5 s where it made one, and none is asked; no marks"
        in summary(load(write(folder, late)))
    )


def test_the_summary_says_what_new_clients_get_while_no_key_manager_can_be_reached(folder: Path) -> None:
    config = load(write(folder, SMALL + '[failover]\nwhen_none = "answer"\n'))
    assert (
        "while no key manager can be reached: new connections are accepted, and requests are answered with an error"
        in summary(config)
    )


def test_the_mark_key_file_begins_where_the_configuration_is_and_need_not_exist(folder: Path) -> None:
    assert load(write(folder, SMALL)).replication.mark_key_file == folder / "mark.key"
    (folder / "secrets").mkdir()
    named = load(write(folder, SMALL + '[replication]\nmark_key_file = "secrets/marks"\n'))
    assert named.replication.mark_key_file == folder / "secrets" / "marks"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "holds no keys for marks"),
        (b"\xff\xfe", "holds no keys for marks"),
        (b"abc\n", "has a line 1 that is no key"),
        (b"0" * 63, "has a line 1 that is no key"),
        (b"0" * 64 + b"\nzz\n", "has a line 2 that is no key"),
    ],
)
def test_a_mark_key_file_with_anything_but_keys_is_refused(folder: Path, content: bytes, found: str) -> None:
    (folder / "mark.key").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"replication.mark_key_file: .*mark.key {found}; give one"):
        load(write(folder, SMALL))


def test_a_mark_key_file_in_a_directory_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no directory .*/nodir to make this file in; make it, or correct"):
        load(write(folder, SMALL + '[replication]\nmark_key_file = "nodir/mark.key"\n'))


def test_a_mark_key_file_that_can_not_be_read_is_refused(folder: Path) -> None:
    (folder / "mark.key").mkdir()
    with pytest.raises(ConfigError, match=r"replication.mark_key_file: .* can't be read \(Is a directory\)"):
        load(write(folder, SMALL))


# The files in config/ -------------------------------------------------------------------------------------------------

SETTING: Final = re.compile(r"(?P<behind># )?(?P<key>[a-z][a-z0-9_]*) = (?P<value>.*)")


def settings_of(path: Path) -> Iterator[tuple[str, str, Any, bool]]:
    """Every setting in a file, live or behind "# ": its section, key, value, and whether it is live."""
    section = ""
    for row in path.read_text().splitlines():
        if row.startswith("["):
            section = row.strip("[]")
        elif found := SETTING.fullmatch(row):
            value = tomllib.loads(f"value = {found['value']}")["value"]
            yield section, found["key"], value, found["behind"] is None


@pytest.fixture
def place(tmp_path: Path) -> Callable[[str], Path]:
    """Copies a file of config/ to a directory where everything it names is beside it."""

    def copy(name: str) -> Path:
        text = (EXAMPLE_FILES / name).read_text()
        put_certificates(tmp_path, text)
        return write(tmp_path, text)

    return copy


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLE_FILES.glob("*.toml")))
def test_every_file_in_config_loads(place: Callable[[str], Path], name: str) -> None:
    config = load(place(name))
    assert all(backend.server_name for backend in config.backends)


def test_the_files_that_are_asked_for_are_there() -> None:
    assert {path.name for path in EXAMPLE_FILES.glob("*.toml")} >= {
        "gateway.toml",
        "demo.toml",
        "two-plus-two.toml",
        "legacy.toml",
    }


def test_gateway_toml_has_every_setting_and_no_other() -> None:
    written = {(section, key) for section, key, _, _ in settings_of(EXAMPLE_FILES / "gateway.toml")}
    assert written == {(section, key) for section, table in SECTIONS.items() for key in table.model_fields}


def test_gateway_toml_has_the_true_defaults() -> None:
    """Behind "# " stands exactly what has a default. ``ca`` has none to speak of: it is None where there is a pin."""
    for section, key, value, live in settings_of(EXAMPLE_FILES / "gateway.toml"):
        field = SECTIONS[section].model_fields[key]
        if key == "match":
            continue
        assert live == (field.is_required() or key == "ca"), f"[{section}] {key}"
        if not live:
            default = str(field.default) if isinstance(field.default, (Address, Path)) else field.default
            assert (tuple(value) if isinstance(value, list) else value) == default, f"[{section}] {key}"


def test_gateway_toml_has_every_key_of_match() -> None:
    matches = [value for _, key, value, _ in settings_of(EXAMPLE_FILES / "gateway.toml") if key == "match"]
    assert {key for match in matches for key in match} == set(KEYS)
    for match in matches:
        MatchConfig.model_validate(match)


def test_gateway_toml_means_the_same_with_every_default_made_live(place: Callable[[str], Path]) -> None:
    path = place("gateway.toml")
    config = load(path)
    live = re.sub(r"(?m)^# (?!match)(?=[a-z][a-z0-9_]* = )", "", path.read_text())
    assert live != path.read_text()
    assert load(write(path.parent, live)) == config


def test_every_setting_in_gateway_toml_says_why() -> None:
    rows = (EXAMPLE_FILES / "gateway.toml").read_text().splitlines()
    for before, row in pairwise(rows):
        found = SETTING.fullmatch(row)
        if found and found["key"] != "match":
            assert before.startswith("# "), row
            assert not SETTING.fullmatch(before), row


def test_every_setting_that_may_be_missing_has_an_example() -> None:
    required = {
        key for section in LISTS for key, field in SECTIONS[section].model_fields.items() if field.is_required()
    }
    assert required == set(EXAMPLES)


def test_the_demo_has_the_ports_it_is_known_by(place: Callable[[str], Path]) -> None:
    config: Config = load(place("demo.toml"))
    assert [str(listener.bind) for listener in config.listeners] == ["127.0.0.1:5696"]
    assert {backend.name: str(backend.address) for backend in config.backends} == {
        "atlanta-001": "127.0.0.1:15696",
        "atlanta-002": "127.0.0.1:15697",
        "london-001": "127.0.0.1:15698",
        "london-002": "127.0.0.1:15699",
    }
    assert (config.identities[0].name, config.identities[0].shared) == ("everyone", True)
    assert str(config.admin.bind) == "127.0.0.1:9696"
