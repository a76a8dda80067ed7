"""The summary of ``kmip-gateway check``."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from gateway.config import (
    advice,
    load,
    summary,
)
from gateway.config.summary import permitted_subjects
from tests.kit.authorities import Ca, common_name
from tests.kit.config_files import (
    PIN,
    SECOND_IDENTITY,
    SECOND_LISTENER,
    SMALL,
    changed,
    unfolded,
    write,
)


def test_an_admin_port_open_to_the_network_is_pointed_out(folder: Path) -> None:
    text = changed('"127.0.0.1:9696"', '"0.0.0.0:9696"\nanonymous_metrics = true')
    config = load(write(folder, text))
    assert "admin on 0.0.0.0:9696, with metrics for everybody" in summary(config)
    (line,) = [line for line in advice(config, datetime.now(UTC)) if line.startswith("admin.")]
    assert line == (
        "admin.anonymous_metrics: everybody who can reach 0.0.0.0:9696 can read the metrics; give a token_file, or have"
        " a firewall keep strangers away"
    )


def test_the_readers_of_the_metrics_are_summed_up(folder: Path) -> None:
    tls = 'certificate = "server.pem"\nprivate_key = "server.key"\nclient_ca = "clients-ca.pem"\ntoken_file = "token"'
    (folder / "token").write_text("0" * 64)
    (folder / "token").chmod(0o600)
    config = load(write(folder, changed('"127.0.0.1:9696"', '"0.0.0.0:9696"\n' + tls)))
    assert "admin on 0.0.0.0:9696 over TLS; metrics for clients with a token and a client certificate" in summary(
        config
    )


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        ("2", "processes: a supervisor, a core, and 2 TLS worker(s)"),
        ('"auto"', "processes: a supervisor, a core, and one TLS worker for each processor but one"),
    ],
)
def test_tls_workers_are_told(folder: Path, workers: str, expected: str) -> None:
    assert expected in summary(load(write(folder, SMALL + f"[gateway]\ntls_workers = {workers}\n")))


def test_the_listeners_of_a_rule_are_named(folder: Path) -> None:
    lines = summary(load(write(folder, changed("shared = true", 'shared = true\nlisteners = "kmip"'))))
    assert (
        "identity everyone for subject_cn * on kmip: many clients, one client to the key managers,"
        " shown as gateway-client.pem"
    ) in lines


def test_the_policy_of_an_identity_is_told(folder: Path) -> None:
    policy = """shared = true
allow = ["read", "Create Key Pair"]
refuse = "Export"
object_types = ["Public Key", "Private Key"]
max_batch_items = 7"""
    lines = summary(load(write(folder, changed("shared = true", policy))))
    assert (
        "identity everyone for subject_cn *: many clients, one client to the key managers, shown as gateway-client.pem,"
        " may use read, Create Key Pair, except Export; new objects of type Public Key or Private Key;"
        " 7 operations in a request"
    ) in lines


def test_the_summary_has_a_line_for_each_table(folder: Path) -> None:
    text = changed('ca = "kms-ca.pem"', f'ca = "kms-ca.pem"\npinned_sha256 = "{PIN}"') + SECOND_IDENTITY
    legacy = SECOND_LISTENER + 'tls_policy = "legacy"\n'
    config = load(write(folder, text + legacy))
    lines = summary(config)
    certificates = [line for line in lines if line.startswith("certificates in ")]
    assert [line.split()[2] for line in certificates] == [
        "server.pem",
        "clients-ca.pem",
        "kms-ca.pem",
        "gateway-client.pem",
        "second.pem",
    ]
    *ending, other = advice(config, datetime.now(UTC))
    assert [line.split(" ")[1] for line in ending] == [str(folder / line.split()[2]) for line in certificates]
    assert [line.split(" ")[0] for line in ending] == [
        'listeners["kmip"].certificate:',
        'listeners["kmip"].client_ca:',
        'backends["atlanta-001"].ca:',
        'identities["everyone"].certificate:',
        'identities["second"].certificate:',
    ]
    assert all(" ends in 0 days, on " in line and line.endswith("; renew it") for line in ending)
    assert other == (
        'listeners["second"].tls_policy: "legacy" accepts versions of TLS that are insecure; set "compatible" or'
        ' "modern" once no client needs them'
    )
    assert [line for line in lines if line not in certificates] == unfolded("""
        listener kmip on 127.0.0.1:5696: at most 10000 clients, TLS policy modern
        listener second on 127.0.0.1:5697: at most 10000 clients, TLS policy legacy
        backend atlanta-001 at 127.0.0.1:15696: at most 64 sessions, verified by name localhost, CA in kms-ca.pem,
            1 pinned certificate(s)
        identity everyone for subject_cn *: many clients, one client to the key managers, shown as gateway-client.pem
        identity second for san_dns second.example.com: one client, shown as second.pem
        processes: one
        admin on 127.0.0.1:9696
        limits: requests of 1 MiB, responses of 2 MiB, 1000 batch items, 32 levels
        deadlines: 30 s for a request, of which 3 s to connect and 5 s in the queue; 10 s to drain
        while no key manager can be reached: new connections are refused
        replication: shared, all key managers have the same objects at any time; marks with the key in mark.key
        log: level info and above, as text
        audit trail: off
    """)


def test_replication_async_is_summed_up(folder: Path) -> None:
    replication = 'mode = "async"\nread_your_writes_window = 2.5\nfallback_on_not_found = false\nmarks = false\n'
    late = f"{SMALL}[replication]\n{replication}"
    assert (
        "replication: async, a client's requests go to the key manager of its last change for 2.5 s; other key managers"
        " are asked for objects that are not found: off; no marks" in summary(load(write(folder, late)))
    )


def test_when_none_answer_is_summed_up(folder: Path) -> None:
    config = load(write(folder, SMALL + '[failover]\nwhen_none = "answer"\n'))
    assert (
        "while no key manager can be reached: new connections are accepted, and requests are answered with an error"
        in summary(config)
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ('to = "file"', "audit trail: all requests, to audit.jsonl; requests are served while it can't be written"),
        (
            'to = "syslog"\nrequests = "changes"\non_failure = "refuse"',
            (
                "audit trail: changes, and reads that were not answered, to syslog; requests are refused while it can't"
                " be written"
            ),
        ),
    ],
)
def test_the_audit_trail_is_summed_up(folder: Path, settings: str, expected: str) -> None:
    assert summary(load(write(folder, f"{SMALL}[audit]\n{settings}\n")))[-1] == expected


def test_the_certificates_of_the_admin_port_are_told(folder: Path) -> None:
    (folder / "admin.pem").write_bytes((folder / "server.pem").read_bytes())
    admin = '"127.0.0.1:9696"\ncertificate = "admin.pem"\nprivate_key = "server.key"'
    config = load(write(folder, changed('"127.0.0.1:9696"', admin)))
    assert any(line.startswith("certificates in admin.pem until ") for line in summary(config))
    found = advice(config, datetime.now(UTC))
    assert any(line.startswith(f"admin.certificate: {folder}/admin.pem ends in 0 days") for line in found)


def test_the_subjects_that_an_issuing_ca_permits_are_told() -> None:
    storage, dns = x509.DirectoryName(common_name("storage")), x509.DNSName("example.com")
    by_dns = Ca.make("issuing", constraints=x509.NameConstraints([dns], None)).certificate
    by_subject = Ca.make("issuing", constraints=x509.NameConstraints([storage, dns], None)).certificate
    assert permitted_subjects([Ca.make("issuing").certificate]) == "any subject"
    assert permitted_subjects([by_dns]) == "any subject"
    assert permitted_subjects([by_dns, by_subject]) == "subjects under CN=storage"
