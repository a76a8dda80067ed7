"""Reload: the difference between two configurations, and what a running core does with it."""

import gc
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from cryptography import x509
from kmip_lab.keymanager import KeyManager, Store
from kmip_lab.tools.clients import Client, connect
from kmip_lab.tools.requests import create_key, get_key

from gateway import log, tls
from gateway.config import Config, load
from gateway.config.model import LISTS, SECTIONS
from gateway.core import Core, ListenAddresses
from gateway.kmip.messages import Response
from gateway.kmip.spec import Operation, ResultReason, ResultStatus
from gateway.metrics import Metrics
from gateway.reload import Changes, compare, contents_of, owners_of
from gateway.tls import client_context
from tests.kit.processes import HOSTS, Certificates, GatewaySettings, Identity, free_port, write_config
from tests.kit.reloads import table

ALICE = Identity("alice", '{ subject_cn = "alice" }', shared=False, credential="alice")
BOB = Identity("bob", '{ subject_cn = "bob" }', shared=False, credential="bob")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates that no test changes."""
    return Certificates(tmp_path_factory.mktemp("compared"))


Edit = Callable[[str], str]


def replacing(old: str, new: str) -> Edit:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return edit


def adding(table: str) -> Edit:
    return lambda text: text + table


def backend(name: str, port: int) -> str:
    return (
        f'\n[[backends]]\nname = "{name}"\naddress = "127.0.0.1:{port}"\nca = "kms_ca.pem"\nserver_name = "localhost"\n'
    )


def listener(name: str, port: int) -> str:
    return f"""
[[listeners]]
name = "{name}"
bind = "127.0.0.1:{port}"
certificate = "server.pem"
private_key = "server.key"
client_ca = "clients_ca.pem"
"""


def without_identity(name: str) -> Edit:
    def edit(text: str) -> str:
        head, *tables = text.split("\n[[identities]]\n")
        return "\n[[identities]]\n".join([head, *(table for table in tables if f'name = "{name}"' not in table)])

    return edit


def changes(folder: Certificates, *edits: Edit) -> Changes:
    path = write_config(folder, GatewaySettings([5696, 5697], [ALICE, BOB]), 20_000, 20_001)
    old = load(path)
    text = path.read_text()
    for edit in edits:
        text = edit(text)
    path.write_text(text)
    new = load(path)
    return compare(old, new, contents_of(old), contents_of(new))


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (adding(backend("kms-3", 5698)), 'backends["kms-3"] added'),
        (replacing('name = "kms-2"', 'name = "kms-2"\nweight = 3'), 'backends["kms-2"].weight'),
        (without_identity("bob"), 'identities["bob"] removed'),
        (adding("[limits]\nmax_clients = 17\n"), "limits.max_clients"),
        (adding("[failover]\ntry_timeout = 1.5\n"), "failover.try_timeout"),
        (replacing('tls_policy = "modern"', 'tls_policy = "compatible"'), 'listeners["kmip"].tls_policy'),
        (adding('[log]\nlevel = "error"\n'), "log.level"),
        (adding(listener("second", 20_005)), 'listeners["second"] added'),
        (replacing("127.0.0.1:20000", "127.0.0.1:20009"), 'listeners["kmip"].bind'),
    ],
)
def test_a_change_is_named_as_the_file_calls_it(folder: Certificates, edit: Edit, line: str) -> None:
    found = changes(folder, edit)
    assert found.lines() == [line]
    assert found.needs_restart == []


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (adding('[log]\nformat = "json"\n'), "log.format"),
        (adding('[replication]\nmode = "async"\n'), "replication.mode"),
        (replacing("127.0.0.1:20001", "127.0.0.1:20009"), "admin.bind"),
        (replacing('tls_policy = "modern"', "reuse_port = true"), 'listeners["kmip"].reuse_port'),
    ],
)
def test_settings_that_need_a_restart_are_named_and_left_out(folder: Certificates, edit: Edit, line: str) -> None:
    found = changes(folder, edit)
    assert found.lines() == []
    assert found.needs_restart == [line]


def test_an_unchanged_configuration_has_no_changes(folder: Certificates) -> None:
    found = changes(folder)
    assert (found.lines(), found.needs_restart, found.has_other_rules) == ([], [], False)
    assert found.replaced_backends | found.renewed_backends | found.renewed_identities == set()
    assert not found.concerns_workers()


def test_another_address_replaces_a_backend_and_other_pins_its_sessions(folder: Certificates) -> None:
    assert changes(folder, replacing("127.0.0.1:5697", "127.0.0.1:5698")).replaced_backends == {"kms-2"}
    pinned = changes(folder, replacing('name = "kms-2"', f'name = "kms-2"\npinned_sha256 = "{"ab" * 32}"'))
    assert (pinned.replaced_backends, pinned.renewed_backends) == (set(), {"kms-2"})


def test_a_changed_match_or_order_makes_other_rules(folder: Certificates) -> None:
    assert changes(folder, replacing('subject_cn = "bob"', 'subject_cn = "eve"')).has_other_rules
    assert not changes(folder, adding("max_requests = 5\n")).has_other_rules


def test_other_clients_and_another_credential_at_once_are_mixed(folder: Certificates) -> None:
    other_clients = replacing('subject_cn = "bob"', 'subject_cn = "eve"')
    folder.credential("eve")
    other_credential = [replacing(f'"credential-bob.{end}"', f'"credential-eve.{end}"') for end in ("pem", "key")]

    assert changes(folder, other_clients).mixed_identities == {}
    assert changes(folder, *other_credential).mixed_identities == {}
    assert changes(folder, other_clients, *other_credential).mixed_identities == {
        "bob": ["match", "certificate", "private_key"]
    }


def test_a_credential_does_not_change_while_clients_of_other_rules_may_come(folder: Certificates) -> None:
    folder.credential("eve")
    other_credential = [replacing(f'"credential-bob.{end}"', f'"credential-eve.{end}"') for end in ("pem", "key")]
    mixed = {"bob": ["certificate", "private_key"]}

    other_rule = replacing('subject_cn = "alice"', 'subject_cn = "carol"')
    assert changes(folder, other_rule, *other_credential).mixed_identities == mixed
    assert (
        changes(folder, lambda text: text.replace(table(text, "alice"), ""), *other_credential).mixed_identities
        == mixed
    )


@pytest.mark.parametrize(("owner", "mixed"), [("bob", {}), ("eve", {"bob": ["certificate"]})])
def test_a_renewed_certificate_is_no_other_credential(
    folder: Certificates, owner: str, mixed: dict[str, list[str]]
) -> None:
    path = write_config(folder, GatewaySettings([5696], [ALICE, BOB]), 20_000, 20_001)
    old, contents, owners = load(path), contents_of(load(path)), owners_of(load(path))
    folder.kms_clients_ca.issue_client(owner).write(*folder.pair("credential-bob"))
    path.write_text(replacing('subject_cn = "alice"', 'subject_cn = "carol"')(path.read_text()))
    new = load(path)
    found = compare(old, new, contents, contents_of(new), owners, owners_of(new))
    assert found.identities.files == {"bob"}
    assert found.mixed_identities == mixed


@pytest.mark.parametrize(
    ("file", "property_name", "names"),
    [
        ("kms_ca.pem", "renewed_backends", {"kms-1", "kms-2"}),
        ("credential-alice.pem", "renewed_identities", {"alice"}),
        ("server.key", "listener_contexts", {"kmip"}),
        ("clients_ca.pem", "listener_contexts", {"kmip"}),
    ],
)
def test_changed_contents_of_a_file_concern_the_tables_that_name_it(
    folder: Certificates, file: str, property_name: str, names: set[str]
) -> None:
    path = write_config(folder, GatewaySettings([5696, 5697], [ALICE, BOB]), 20_000, 20_001)
    config = load(path)
    before = contents_of(config)
    after = {**before, folder.path(file): b"other"}
    found = compare(config, config, before, after)
    assert getattr(found, property_name) == names
    assert found.lines() == [f"file {folder.path(file)}"]


def test_settings_of_tls_workers_are_known(folder: Certificates) -> None:
    assert changes(folder, adding("[per_address]\nmax_clients = 7\n")).concerns_workers()
    assert changes(folder, replacing('tls_policy = "modern"', "request_timeout = 7")).concerns_workers()
    assert not changes(folder, adding("[limits]\nmax_clients = 7\n")).concerns_workers()


# A running core ------------------------------------------------------------------------------------------------------


class Running:
    """A core with two key managers, and its configuration file."""

    def __init__(self, certificates: Certificates, path: Path, core: Core, bound: ListenAddresses) -> None:
        self.certificates = certificates
        self.path = path
        self.core = core
        self.bound = bound

    @asynccontextmanager
    async def client(self, name: str = "alice") -> AsyncIterator[Client]:
        context = client_context(*self.certificates.client(name), self.certificates.path("gateway_ca.pem"))
        async with connect(self.bound.listeners[0], context) as client:
            yield client

    def edit(self, *edits: Edit) -> None:
        text = self.path.read_text()
        for edit in edits:
            text = edit(text)
        self.path.write_text(text)

    def total(self, name: str, **labels: str) -> float:
        metrics: Metrics = self.core.metrics
        return sum(
            sample.value
            for family in metrics.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    @property
    def opened(self) -> float:
        return self.total("kmip_gateway_sessions_opened_total")

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(10):
            while not condition():  # noqa: ASYNC110 - what is awaited has no event
                await trio.sleep(0.02)


@pytest.fixture
async def key_managers(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[tuple[Certificates, list[KeyManager]]]:
    certificates = Certificates(tmp_path)
    context = tls.server_context(*certificates.pair("kms"), certificates.path("kms_clients_ca.pem"))
    store = Store()
    made = [KeyManager(f"kms-{number}", store, context=context) for number in (1, 2)]
    for key_manager in made:
        await nursery.start(key_manager.serve, ("127.0.0.1", 0))
    yield certificates, made
    store.close()


@pytest.fixture
async def it(key_managers: tuple[Certificates, list[KeyManager]], nursery: trio.Nursery) -> AsyncIterator[Running]:
    certificates, made = key_managers
    settings = GatewaySettings([key_manager.port for key_manager in made], [ALICE, BOB])
    path = write_config(certificates, settings, free_port(), free_port())
    config: Config = load(path)
    core = Core(config, path=path)
    bound: ListenAddresses = await nursery.start(core.run)
    running = Running(certificates, path, core, bound)
    await running.until(lambda: running.total("kmip_gateway_sessions", state="idle") == 4)
    yield running
    core.drain()


def succeeded(response: Response) -> bool:
    return response.items[0].status == ResultStatus.SUCCESS


async def test_a_reload_without_changes_touches_nothing(it: Running) -> None:
    before = it.opened
    async with it.client() as client:
        assert succeeded(await client.ask(create_key()))
        report = await it.core.reload()
        assert (report.succeeded, list(report.changed), list(report.needs_restart)) == (True, [], [])
        assert succeeded(await client.ask(create_key()))
    assert it.opened == before
    assert it.total("kmip_gateway_config_reloads_total", result="success") == 1


async def test_a_bad_file_leaves_the_old_configuration(it: Running) -> None:
    it.edit(adding("[limits]\nmax_clients = 0\nmax_requests = 0\n"))
    report = await it.core.reload()
    assert len(report.mistakes) == 2
    assert it.total("kmip_gateway_config_reloads_total", result="failure") == 1
    async with it.client() as client:
        assert succeeded(await client.ask(create_key()))


async def test_a_log_level_set_by_a_command_stays_until_the_file_has_another(
    it: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels: list[str] = []
    monkeypatch.setattr(log, "set_level", levels.append)
    it.edit(adding("[log]\nslow_request = 3.0\n"))
    report = await it.core.reload()
    assert (list(report.changed), levels) == (["log.slow_request"], [])
    it.edit(replacing("slow_request = 3.0", 'slow_request = 3.0\nlevel = "error"'))
    report = await it.core.reload()
    assert (list(report.changed), levels) == (["log.level"], ["error"])


async def test_a_changed_lame_duck_and_drain_hold_for_the_next_drain(it: Running) -> None:
    it.edit(adding("[deadlines]\nlame_duck = 60\ndrain = 20\n"))
    assert set((await it.core.reload()).changed) == {"deadlines.lame_duck", "deadlines.drain"}
    it.core.drain()
    await it.until(lambda: it.total("kmip_gateway_draining") == 1)
    async with it.client() as client:
        assert succeeded(await client.ask(create_key()))
    it.core.end_waiting()


async def test_no_object_of_a_core_holds_a_table_that_reloads_do_not_change(
    key_managers: tuple[Certificates, list[KeyManager]], nursery: trio.Nursery
) -> None:
    certificates, made = key_managers
    path = write_config(certificates, GatewaySettings([made[0].port], [ALICE]), free_port(), free_port())
    text = path.read_text()
    headings = [f"[{section}]\n" for section in SECTIONS if section not in LISTS and f"[{section}]" not in text]
    path.write_text(text + "".join(headings))  # a table that the file leaves out is one object for all configurations
    config: Config = load(path)
    tables = {section: weakref.ref(getattr(config, section)) for section in SECTIONS.keys() - LISTS}
    tables |= {f"{section} 1": weakref.ref(getattr(config, section)[0]) for section in LISTS}
    core = Core(config, path=path)
    await nursery.start(core.run)
    del config
    gc.collect()
    assert [name for name, table in sorted(tables.items()) if table() is not None] == []
    core.drain()


async def test_backends_come_and_go_and_the_others_keep_their_sessions(it: Running) -> None:
    full = it.path.read_text()
    table = full[full.index('\n[[backends]]\nname = "kms-2"') : full.index("\n[[identities]]")]
    async with it.client() as client:
        uid = (await client.ask(create_key())).items[0].unique_identifiers[0].decode()
        it.path.write_text(full.replace(table, ""))
        assert list((await it.core.reload()).changed) == ['backends["kms-2"] removed']
        await it.until(lambda: it.total("kmip_gateway_sessions_closed_total", backend="kms-2", reason="removed") == 2)
        for _ in range(4):
            assert succeeded(await client.ask(get_key(uid)))
        assert it.total("kmip_gateway_sessions_max") == 64
        it.path.write_text(full)
        assert list((await it.core.reload()).changed) == ['backends["kms-2"] added']
        await it.until(lambda: it.total("kmip_gateway_sessions", backend="kms-2", state="idle") == 2)
        for _ in range(4):
            assert succeeded(await client.ask(get_key(uid)))
    assert it.total("kmip_gateway_sessions_opened_total", backend="kms-1") == 2
    assert it.total("kmip_gateway_backend_requests_total", backend="kms-2", result="answered") >= 2


async def test_weight_and_role_change_in_place(it: Running) -> None:
    before = it.opened
    async with it.client() as client:
        it.edit(replacing('name = "kms-2"', 'name = "kms-2"\npriority = 1\nmax_sessions = 7'))
        assert (await it.core.reload()).succeeded
        asked = it.total("kmip_gateway_backend_requests_total", backend="kms-2", result="answered")
        for _ in range(6):
            assert succeeded(await client.ask(create_key()))
    assert it.total("kmip_gateway_backend_requests_total", backend="kms-2", result="answered") == asked
    assert it.total("kmip_gateway_sessions_max", backend="kms-2") == 7
    assert it.opened == before


async def test_a_client_of_a_removed_identity_is_told_at_its_next_request(it: Running) -> None:
    full = it.path.read_text()
    async with it.client() as alice, it.client("bob") as bob:
        assert succeeded(await bob.ask(create_key()))
        assert succeeded(await alice.ask(create_key()))
        it.edit(without_identity("bob"))
        assert list((await it.core.reload()).changed) == ['identities["bob"] removed']
        answer = (await bob.ask(create_key())).items[0]
        assert answer.reason == ResultReason.AUTHENTICATION_NOT_SUCCESSFUL
        assert succeeded(await alice.ask(create_key()))
        assert it.total("kmip_gateway_sessions", state="idle") == 2
    it.path.write_text(full)
    assert list((await it.core.reload()).changed) == ['identities["bob"] added']
    async with it.client("bob") as bob:
        assert succeeded(await bob.ask(create_key()))


async def test_a_policy_changes_in_place_for_connected_clients(it: Running) -> None:
    async with it.client() as alice, it.client("bob") as bob:
        assert succeeded(await alice.ask(create_key()))
        it.edit(replacing('match = { subject_cn = "alice" }', 'match = { subject_cn = "alice" }\nallow = "read"'))
        assert list((await it.core.reload()).changed) == ['identities["alice"].allow']
        answer = (await alice.ask(create_key())).items[0]
        assert answer.reason == ResultReason.PERMISSION_DENIED
        assert succeeded(await bob.ask(create_key()))
        assert it.total("kmip_gateway_policy_refusals_total", identity="alice", operation="Create") == 1
        it.edit(replacing('allow = "read"', 'allow = ["read", "create"]'))
        assert (await it.core.reload()).succeeded
        assert succeeded(await alice.ask(create_key()))


async def test_a_client_that_changes_identity_never_has_the_new_policy_of_the_old(it: Running) -> None:
    it.edit(replacing('match = { subject_cn = "alice" }', 'match = { subject_cn = "alice" }\nallow = "read"'))
    assert (await it.core.reload()).succeeded
    async with it.client() as alice:
        assert not succeeded(await alice.ask(create_key()))
        assert it.core._reloader is not None
        (conversation,) = it.core._reloader._front.clients["kmip"]._conversations
        principal = conversation._principal
        assert principal is not None
        it.edit(
            replacing('match = { subject_cn = "alice" }\nallow = "read"', 'match = { subject_cn = "carol" }'),
            replacing('match = { subject_cn = "bob" }', 'match = { subject_cn = "alice" }\nrefuse = "create"'),
        )
        assert (await it.core.reload()).succeeded
        assert Operation.CREATE not in principal.identity.permissions.free
        assert conversation.identity_name == "bob"
        assert not succeeded(await alice.ask(create_key()))


async def test_an_idle_client_of_a_removed_identity_is_disconnected(it: Running) -> None:
    it.edit(replacing('tls_policy = "modern"', "request_timeout = 0.3"))
    assert (await it.core.reload()).succeeded
    async with it.client("bob") as bob, it.client() as alice:
        assert succeeded(await bob.ask(create_key()))
        it.edit(without_identity("bob"))
        assert (await it.core.reload()).succeeded
        with trio.fail_after(2):
            assert await bob.stream.receive_some() == b""
        assert succeeded(await alice.ask(create_key()))


async def test_requests_in_flight_of_a_removed_identity_and_backend_finish(
    it: Running, key_managers: tuple[Certificates, list[KeyManager]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[bool] = []

    async def ask(client: Client) -> None:
        answered.append(succeeded(await client.ask(create_key())))

    for key_manager in key_managers[1]:
        monkeypatch.setattr(key_manager.hsm, "_operation_cost", 0.4)
    full = it.path.read_text()
    table = full[full.index('\n[[backends]]\nname = "kms-2"') : full.index("\n[[identities]]")]
    async with trio.open_nursery() as nursery:
        for name in ("bob", "bob", "alice", "alice"):
            nursery.start_soon(ask, await nursery.start(held_client, it, name))
        await it.until(lambda: it.total("kmip_gateway_requests_in_flight") == 4)
        it.path.write_text(without_identity("bob")(full.replace(table, "")))
        assert (await it.core.reload()).succeeded
        await it.until(lambda: len(answered) == 4)
        nursery.cancel_scope.cancel()
    assert answered == [True] * 4


async def held_client(it: Running, name: str, *, task_status: trio.TaskStatus[Client]) -> None:
    async with it.client(name) as client:
        task_status.started(client)
        await trio.sleep_forever()


async def test_a_client_may_get_another_identity(it: Running) -> None:
    async with it.client() as alice:
        assert succeeded(await alice.ask(create_key()))
        it.edit(
            replacing('subject_cn = "bob"', 'subject_cn = "nobody"'),
            replacing('subject_cn = "alice"', 'subject_cn = "bob"'),
        )
        it.edit(replacing('subject_cn = "nobody"', 'subject_cn = "alice"'))
        assert (await it.core.reload()).succeeded
        answer = (await alice.ask(create_key())).items[0]
        assert answer.status == ResultStatus.SUCCESS
        assert it.total("kmip_gateway_requests_total", result="success") == 2


async def test_a_rate_of_requests_changes_in_place(it: Running) -> None:
    async with it.client() as alice:
        for _ in range(5):
            assert succeeded(await alice.ask(create_key()))
        it.edit(replacing('name = "alice"', 'name = "alice"\nrequests_per_second = 0.01\nrequest_burst = 2.0'))
        assert (await it.core.reload()).succeeded
        answers = [succeeded(await alice.ask(create_key())) for _ in range(4)]
    assert answers == [True, True, False, False]


async def test_a_renewed_credential_replaces_the_sessions_of_its_identity(it: Running) -> None:
    before = it.opened
    async with it.client() as alice:
        it.certificates.kms_clients_ca.issue_client("alice").write(*it.certificates.pair("credential-alice"))
        report = await it.core.reload()
        assert len(report.changed) == 2  # two files
        await it.until(lambda: it.opened == before + 2)
        for _ in range(4):
            assert succeeded(await alice.ask(create_key()))
    await trio.sleep(0.6)
    assert it.opened == before + 2


async def test_half_a_credential_is_a_mistake_and_changes_nothing(it: Running) -> None:
    before = it.opened
    certificate, _key = it.certificates.pair("credential-alice")
    other = it.certificates.path("other.key")
    it.certificates.kms_clients_ca.issue_client("alice").write(certificate, other)
    assert not (await it.core.reload()).succeeded
    await trio.sleep(0.6)
    assert it.opened == before
    other.replace(it.certificates.path("credential-alice.key"))
    assert (await it.core.reload()).succeeded


async def test_new_connections_get_a_renewed_certificate(it: Running) -> None:
    async with it.client() as kept:
        renewed = it.certificates.gateway_ca.issue_server("renewed", HOSTS)
        renewed.write(*it.certificates.pair("server"))
        assert (await it.core.reload()).succeeded
        assert succeeded(await kept.ask(create_key()))
        async with it.client() as fresh:
            assert succeeded(await fresh.ask(create_key()))
            shown = x509.load_der_x509_certificate(fresh.stream.peer_certificate_der() or b"")
            assert shown.subject.rfc4514_string() == "CN=renewed"


async def test_a_changed_file_reloads_by_itself(it: Running) -> None:
    await trio.sleep(1.1)  # the watch has begun
    it.certificates.gateway_ca.issue_server("renewed", HOSTS).write(*it.certificates.pair("server"))
    await it.until(lambda: it.total("kmip_gateway_config_reloads_total", result="success") == 1)


async def test_a_core_without_a_file_reports_that_it_cannot_reload(folder: Certificates) -> None:
    path = write_config(folder, GatewaySettings([5696]), free_port(), free_port())
    report = await Core(load(path)).reload()
    assert not report.succeeded
