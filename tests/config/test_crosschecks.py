"""Rules between settings: names, addresses, CAs, sizes, times."""

from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from gateway.config import (
    LimitsConfig,
    load,
)
from tests.kit.config_files import (
    PIN,
    SECOND_IDENTITY,
    SECOND_LISTENER,
    SMALL,
    changed,
    make_pair,
    mistakes_in,
    pair,
    put_certificates,
    put_second,
    unfolded,
    write,
)


def test_several_listeners_may_use_port_0(folder: Path) -> None:
    text = changed("127.0.0.1:5696", "127.0.0.1:0") + SECOND_LISTENER.replace("127.0.0.1:5697", "127.0.0.1:0")
    assert [listener.bind.port for listener in load(write(folder, text)).listeners] == [0, 0]


def test_a_wrong_setting_is_not_compared_with_other_settings(folder: Path) -> None:
    """The operator corrects a wrong setting first; a comparison with it would be a second, false mistake."""
    text = changed("[admin]", "[deadlines]\nrequest = 600\n[pool]\nmin_idle = -1\nqueue_timeout = 50\n[admin]")
    assert [mistake.partition(":")[0] for mistake in mistakes_in(folder, text)] == [
        "pool.min_idle",
        "deadlines.request",
    ]


def test_a_listener_on_the_default_admin_port_is_refused(folder: Path) -> None:
    text = changed('[admin]\nbind = "127.0.0.1:9696"\n', "").replace("127.0.0.1:5696", "localhost:9696")
    load(write(folder, text))  # localhost may be ::1
    assert mistakes_in(folder, text.replace("localhost:9696", "0.0.0.0:9696")) == [
        'admin.bind: 127.0.0.1:9696 overlaps 0.0.0.0:9696 of listeners["kmip"]; give each its own port'
    ]


def test_ipv4_and_ipv6_may_use_one_port(folder: Path) -> None:
    text = changed("127.0.0.1:5696", "0.0.0.0:5696") + SECOND_LISTENER.replace("127.0.0.1:5697", "[::]:5696")
    load(write(folder, text))


def test_expired_certificates_of_all_identities_are_refused(folder: Path) -> None:
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


def test_two_shared_identities_may_have_one_certificate(folder: Path) -> None:
    second = SECOND_IDENTITY.replace("second.", "gateway-client.") + "shared = true\n"
    assert len(load(write(folder, SMALL + second)).identities) == 2


#: A door for the clients of another CA.
PARTNERS: Final = SECOND_LISTENER.replace('"second"', '"partners"').replace("clients-ca.pem", "partners-ca.pem")


ONE_NAME: Final = changed('match = { subject_cn = "*" }\nshared = true', 'match = { subject_cn = "payroll" }')


TWO_NAMES: Final = 'identities["everyone"].listeners: {}"kmip" and "partners" trust different CAs, so that two clients'


def test_with_several_cas_a_rule_must_name_its_listeners(folder: Path) -> None:
    """The key managers would take a "payroll" of either CA for one client: each could get the keys of the other."""
    put_certificates(folder, PARTNERS)
    text = ONE_NAME + PARTNERS
    assert mistakes_in(folder, text) == [
        TWO_NAMES.format("missing, and ")
        + " with the same name can match; name the listeners of this rule, or match a fingerprint_sha256"
    ]
    both = changed('name = "everyone"', 'name = "everyone"\nlisteners = ["kmip", "partners"]', text)
    assert mistakes_in(folder, both) == [
        TWO_NAMES.format("")
        + " with the same name can match; name listeners with the same CAs, or set shared = true if that is intended"
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
def test_with_several_cas_listeners_or_a_fingerprint_will_do(folder: Path, said: str) -> None:
    put_certificates(folder, PARTNERS)
    load(write(folder, changed('match = { subject_cn = "payroll" }', said, ONE_NAME) + PARTNERS))


def test_ca_files_are_compared_by_their_certificates(folder: Path) -> None:
    (folder / "partners-ca.pem").write_bytes(pair("clients-ca")[0])
    load(write(folder, ONE_NAME + PARTNERS))
    (folder / "partners-ca.pem").write_bytes(pair("clients-ca")[0] + pair("partners-ca")[0])
    assert len(mistakes_in(folder, ONE_NAME + PARTNERS)) == 1
    (folder / "clients-ca.pem").write_bytes(pair("partners-ca")[0] + pair("clients-ca")[0])
    load(write(folder, ONE_NAME + PARTNERS))


def test_an_unknown_listener_of_a_rule_is_refused(folder: Path) -> None:
    text = changed("shared = true", 'shared = true\nlisteners = ["kmip", "kmpi"]')
    assert mistakes_in(folder, text) == [
        'identities["everyone"].listeners: there is no listener "kmpi"; give names of "kmip"'
    ]


def test_sizes_allow_the_retrieval_of_the_largest_object(folder: Path) -> None:
    assert LimitsConfig().max_response_size > LimitsConfig().max_request_size
    limits = "[limits]\nmax_request_size = 1000000\nmax_response_size = 1000000\nmax_buffered = 2499999\n"
    assert mistakes_in(folder, SMALL + limits) == unfolded("""
        limits.max_response_size: 1000000 is too little for max_request_size = 1000000: an object could be registered
            and never be retrieved; give at least 1004096
        limits.max_buffered: 2499999 is too little: one client may need max_request_size = 1000000 and
            max_response_size = 1000000 together, and a fifth of max_buffered is kept for other clients; give at least
            2500000
    """)
    load(write(folder, SMALL + "[limits]\nmax_response_size = 1052672\nmax_buffered = 2626560\n"))


def test_a_user_timeout_below_twice_the_keepalive_is_refused(folder: Path) -> None:
    """Once the user timeout has passed, Linux ends a connection at the first keep-alive probe without an answer."""
    text = changed('tls_policy = "modern"', "tcp_keepalive = 61") + SECOND_LISTENER + "tcp_user_timeout = 119.5\n"
    assert mistakes_in(folder, text + "[pool]\ntcp_keepalive = 15\n") == unfolded("""
        listeners["kmip"].tcp_user_timeout: 120 s is less than twice tcp_keepalive = 61 s: one lost packet could end an
            idle connection; give at least 122, or lower tcp_keepalive
        listeners["second"].tcp_user_timeout: 119.5 s is less than twice tcp_keepalive = 60 s: one lost packet could end
            an idle connection; give at least 120, or lower tcp_keepalive
        pool.tcp_user_timeout: 10 s is less than twice tcp_keepalive = 15 s: one lost packet could end an idle
            connection; give at least 30, or lower tcp_keepalive
    """)
    config = load(write(folder, SMALL + "[pool]\ntcp_keepalive = 15\ntcp_user_timeout = 30\n"))
    assert (config.pool.tcp_keepalive, config.pool.tcp_user_timeout) == (15, 30.0)


SECOND_RULE: Final = SECOND_IDENTITY.replace('match = { san_dns = "second.example.com" }', "{}")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('match = { subject_cn = "*" }', 'match = { subject_cn = "second" }'),
        ('match = { subject_cn = "second" }', 'match = { subject_cn = "second", issuer = "CN=CA" }'),
        ('match = { subject_cn = "*" }', 'match = { subject_cn = "second" }\nlisteners = "kmip"'),
        ('match = { subject_cn = "*" }\nlisteners = "kmip"', 'match = { subject_cn = "second" }'),
        ('match = { san_ip = "10.0.0.0/8" }', 'match = { san_ip = "10.1.2.3" }'),
    ],
)
def test_a_rule_behind_one_that_matches_all_its_clients_is_refused(folder: Path, first: str, second: str) -> None:
    put_second(folder, lasts=timedelta(days=1))
    text = changed('match = { subject_cn = "*" }', first) + SECOND_RULE.replace("{}", second)
    (mistake,) = mistakes_in(folder, text)
    assert mistake == (
        'identities["second"].match: never counts, because identities["everyone"], which stands before it, matches all'
        " its clients; move this rule before that rule, or remove it"
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('match = { subject_cn = "second" }', 'match = { subject_cn = "third" }'),
        ('match = { subject_cn = "second", issuer = "CN=CA" }', 'match = { subject_cn = "second" }'),
        ('match = { subject_cn = "*" }', 'match = { san_dns = "second.example.com" }'),
        ('match = { subject_cn = "*" }\nlisteners = "second"', 'match = { subject_cn = "second" }'),
        ('match = { subject_cn = "*" }\nlisteners = "second"', 'match = { subject_cn = "two" }\nlisteners = "kmip"'),
    ],
)
def test_rules_that_may_count_are_not_refused(folder: Path, first: str, second: str) -> None:
    put_second(folder, lasts=timedelta(days=1))
    text = changed('match = { subject_cn = "*" }', first) + SECOND_LISTENER + SECOND_RULE.replace("{}", second)
    load(write(folder, text))
