"""Texts of mistakes in a configuration."""

import re
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.config.mistakes import EXAMPLES
from gateway.config.model import LISTS, SECTIONS
from tests.kit.config_files import (
    SECOND_BACKEND,
    SMALL,
    mistakes_in,
    unfolded,
)

#: Texts of SMALL that are replaced (-), their replacement (+), and every mistake that must be reported (=). Without a
#: "-", the "+" are added at the end. A line that is indented further continues the line above.
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
  = zoo: unknown key "zoo"; known here are listeners, backends, identities, gateway, admin, pool, balancing, failover,
    replication, health, deadlines, limits, per_address, log, audit
fewer than no TLS workers
  - [admin]
  + [gateway]
  + tls_workers = -1
  + [admin]
  = gateway.tls_workers: is -1; give a whole number from 0 to 64, or "auto"
TLS workers in words
  - [admin]
  + [gateway]
  + tls_workers = "two"
  + [admin]
  = gateway.tls_workers: is "two"; give a whole number from 0 to 64, or "auto"
metrics for the network
  - bind = "127.0.0.1:9696"
  + bind = "0.0.0.0:9696"
  = admin.bind: 0.0.0.0:9696 can be reached by other machines, and all of them could read the metrics; give a
    token_file, or certificate, private_key and client_ca; or bind 127.0.0.1; or set anonymous_metrics = true if the
    network keeps strangers away
metrics for everybody and for few
  - bind = "127.0.0.1:9696"
  + bind = "127.0.0.1:9696"
  + certificate = "server.pem"
  + private_key = "server.key"
  + client_ca = "clients-ca.pem"
  + anonymous_metrics = true
  = admin.anonymous_metrics: contradicts token_file and client_ca, which keep strangers from the metrics; leave one of
    them out
certificate without a key
  - bind = "127.0.0.1:9696"
  + certificate = "server.pem"
  = admin.private_key: missing, and certificate is given; TLS needs certificate and private_key
key without a certificate
  - bind = "127.0.0.1:9696"
  + private_key = "server.key"
  = admin.certificate: missing, and private_key is given; TLS needs certificate and private_key
client CA without TLS
  - bind = "127.0.0.1:9696"
  + client_ca = "clients-ca.pem"
  = admin.certificate: missing, and client_ca is given; TLS needs certificate and private_key
tokens that are missing
  - bind = "127.0.0.1:9696"
  + token_file = "none.txt"
  = admin.token_file: there is no file DIR/none.txt; make it with `openssl rand -hex 32`, or correct the path
tokens that are none
  - bind = "127.0.0.1:9696"
  + token_file = "server.pem"
  = admin.token_file: DIR/server.pem holds no tokens, or a line that is none; give one token a line, of at least 32
    letters, digits or -._~+/= (`openssl rand -hex 32`)
group without a user
  + [gateway]
  + group = "root"
  = gateway.group: has no effect without user; set user, or leave this line out
unknown user
  + [gateway]
  + user = "nobody-there"
  = gateway.user: this machine has no user "nobody-there"; make one (useradd --system), or correct it
near key in match
  - subject_cn
  + subject_nc
  = identities["everyone"].match.subject_nc: unknown key "subject_nc"; did you mean "subject_cn"?
credential of nobody
  + [health]
  + credential = "nobody"
  = health.credential: there is no identity "nobody"; give one of "everyone"
key of another section
  + max_sessions = 5
  = admin.max_sessions: unknown key "max_sessions"; it belongs in [[backends]], and known here are bind, hosts, socket,
    certificate, private_key, client_ca, token_file, anonymous_metrics
far key
  + 'pass word' = "do not repeat this"
  = admin."pass word": unknown key "pass word"; known here are bind, hosts, socket, certificate, private_key, client_ca,
    token_file, anonymous_metrics
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
  = identities["everyone"].shared: must be true or false; write it without quotes
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
  = listeners["kmip"].bind: has no host; give 0.0.0.0 for every IPv4 address of this machine, [::] for every
    IPv6 address
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
  = backends["atlanta-001"].ca: missing; give a file with the CA that issued the key manager's certificate, or pin
    the certificate with pinned_sha256
wrong pins
  - ca = "kms-ca.pem"
  + pinned_sha256 = ["ab:cd"]
  = backends["atlanta-001"].pinned_sha256: has a fingerprint of 4 digits, and SHA-256 has 64; give the output of
    `openssl x509 -noout -fingerprint -sha256 -in FILE`
pins that aren't hexadecimal
  - ca = "kms-ca.pem"
  + pinned_sha256 = "sha256 Fingerprint=AB"
  = backends["atlanta-001"].pinned_sha256: has "sha256 Fingerprint=AB", which is not hexadecimal; give the output
    of `openssl x509 -noout -fingerprint -sha256 -in FILE`
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
    the key of that certificate
name used twice
  + [[backends]]
  + name = "atlanta-001"
  + address = "127.0.0.1:15697"
  + ca = "kms-ca.pem"
  = backends[1].name: "atlanta-001" is also the name of backends[0]; give each table its own name
address used twice
  + [[backends]]
  + name = "london-001"
  + address = "127.0.0.1:15696"
  + ca = "kms-ca.pem"
  = backends["london-001"].address: 127.0.0.1:15696 is also the address of backends["atlanta-001"]; list each
    key manager once
port bound twice
  + [[listeners]]
  + name = "second"
  + bind = "127.0.0.1:5696"
  + certificate = "server.pem"
  + private_key = "server.key"
  + client_ca = "clients-ca.pem"
  = listeners["second"].bind: 127.0.0.1:5696 is also the address of listeners["kmip"]; give each its own port
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
  = admin.bind: 127.0.0.1:5696 is also the address of listeners["kmip"]; give each its own port
certificate shown twice
  + [[identities]]
  + name = "second"
  + match = { san_dns = "second" }
  + certificate = "gateway-client.pem"
  + private_key = "gateway-client.key"
  = identities["second"].certificate: is also the certificate of identities["everyone"]: the clients of both
    identities would see, use and destroy each other's keys; give each identity its own certificate, or set
    shared = true in both if that is intended
more idle than allowed
  - server_name = "localhost"
  + max_sessions = 2
  + [pool]
  + min_idle = 3
  = pool.min_idle: 3 is more than max_sessions = 2 of backends["atlanta-001"]; lower min_idle or raise
    max_sessions
parts longer than the whole
  + [deadlines]
  + request = 2.5
  = deadlines.connect: 3 s is longer than deadlines.request = 2.5 s, which includes this time; lower this setting
    or raise deadlines.request
  = pool.queue_timeout: 5 s is longer than deadlines.request = 2.5 s, which includes this time; lower this
    setting or raise deadlines.request
"""


def read_cases(text: str) -> list[Any]:
    cases = []
    for case in re.split(r"\n(?=\w)", text.strip()):
        name, *rows = re.sub(r"\n {4}", " ", case).split("\n")
        removed, added, said = ([row[4:] for row in rows if row[2] == mark] for mark in "-+=")
        cases.append(pytest.param("\n".join(removed), "\n".join(added), said, id=name))
    return cases


@pytest.mark.parametrize(("old", "new", "expected"), read_cases(REFUSED))
def test_a_mistake_says_what_is_wrong_and_what_to_do(folder: Path, old: str, new: str, expected: list[str]) -> None:
    text = SMALL.replace(old, new, 1) if old else SMALL + new
    assert text != SMALL
    assert mistakes_in(folder, text) == expected


def test_an_empty_file_lacks_three_sections(folder: Path) -> None:
    assert mistakes_in(folder, "") == [
        "listeners: missing; add [[listeners]]",
        "backends: missing; add [[backends]]",
        "identities: missing; add [[identities]]",
    ]
    assert mistakes_in(folder, "listeners = []\nbackends = [1]\nidentities = [{}]") == [
        "listeners: is empty; give at least one table",
        "backends[0]: must be a table; write [[backends]]",
        'identities[0].name: missing; add a line such as name = "a-name"',
        'identities[0].match: missing; add a line such as match = { subject_cn = "app-1" }',
        'identities[0].certificate: missing; add a line such as certificate = "certs/own.pem"',
        'identities[0].private_key: missing; add a line such as private_key = "certs/own.key"',
    ]


def test_all_mistakes_are_reported_at_once(folder: Path) -> None:
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
        backends[1].ca: missing; give a file with the CA that issued the key manager's certificate, or pin the
            certificate with pinned_sha256
        backends[1].cca: unknown key "cca"; did you mean "ca"?
        identities["everyone"].shared: is false, but match can match more than one client (subject_cn has a
            wildcard), and the gateway shows the key managers one certificate for all of them: they would see, use and
            destroy each other's keys; narrow match to one literal value, or set shared = true if that is intended
        identities["everyone"].private_key: DIR/server.key does not belong to the certificate in
            DIR/gateway-client.pem; give the key of that certificate
        deadlines.conect: unknown key "conect"; did you mean "connect"?
        limits.max_depth: 1000 is too much; give at most 128
        backends[1].name: "atlanta-001" is also the name of backends[0]; give each table its own name
        admin.bind: 127.0.0.1:5696 is also the address of listeners["kmip"]; give each its own port
        pool.queue_timeout: 5 s is longer than deadlines.request = 4 s, which includes this time; lower this
            setting or raise deadlines.request
    """)


@pytest.mark.parametrize("setting", ["certificate", "name", "tls_policy", "bind"])
def test_a_private_key_in_the_wrong_place_is_not_repeated(folder: Path, setting: str) -> None:
    secret = "-----BEGIN PRIVATE KEY-----\\nMIGHAgEAMBMG\\n-----END PRIVATE KEY-----"
    text = re.sub(rf'^{setting} = ".*"$', lambda _: f'{setting} = "{secret}"', SMALL, count=1, flags=re.MULTILINE)
    assert "MIGH" not in "\n".join(mistakes_in(folder, text))


def test_every_required_setting_has_an_example() -> None:
    required = {
        key for section in LISTS for key, field in SECTIONS[section].model_fields.items() if field.is_required()
    }
    assert required == set(EXAMPLES)
