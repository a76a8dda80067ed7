"""Connection check: a session to every address of every backend with every credential, as the gateway opens it.

For ``kmip-gateway check --connect``. Each try has the deadline of a running gateway, and few run at once for each
backend: a key manager that keeps its keys in an HSM makes a handshake in a second.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, NamedTuple

import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gateway import tls
from gateway.config import Address, BackendConfig, Config, IdentityConfig
from gateway.errors import BackendError, ConfigError, MintingError
from gateway.explain import explain
from gateway.kmip.messages import Request, Response, Version, reason_name
from gateway.kmip.spec import ResultReason, ResultStatus
from gateway.log import quoted
from gateway.metrics import Metrics
from gateway.remedies import remedy_for
from gateway.tls.minting import IssuingCa, MintedCertificate
from gateway.tls.verification import UNREADABLE_CERTIFICATE
from gateway.upstream.connecting import look_up
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.health_check import DISCOVER_VERSIONS, offered_versions
from gateway.upstream.open_session import SessionTarget, open_session
from gateway.wiring import Upstream

_AT_ONCE: Final = 2  # tries at one backend
_ALL_AT_ONCE: Final = 16  # tries at all backends
_SILENT: Final = 2  # tries without an answer to the first request, after which an address is left alone
_SOON: Final = timedelta(days=30)  # before its end, in which a certificate should be renewed
_NAMES: Final = 5  # of a certificate that a message repeats

OK: Final = "ok"
WARNING: Final = "warning"
FAILED: Final = "failed"
NOT_TRIED: Final = "not tried"

_REFUSALS: Final = {
    int(ResultReason.AUTHENTICATION_NOT_SUCCESSFUL): "not_authenticated",
    int(ResultReason.PERMISSION_DENIED): "permission_denied",
}


class Attempt(NamedTuple):
    """One try: a backend, one of its addresses, and an identity.

    ``identity`` is "" if no connection was made, so that the other identities were not tried. ``result`` is OK,
    WARNING, FAILED or NOT_TRIED; then ``reason``, ``detail`` and ``remedy`` say why. ``certificate_ends`` is the end of
    the key manager's certificate, as far as the handshake came; ``versions`` are those of KMIP that it offers.
    """

    backend: str
    address: str
    identity: str
    result: str
    reason: str = ""
    detail: str = ""
    remedy: str = ""
    milliseconds: float | None = None
    tls: str = ""
    versions: tuple[Version, ...] = ()
    certificate_ends: datetime | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the try as values that JSON can hold."""
        ends = self.certificate_ends
        return {
            **self._asdict(),
            "versions": [f"{major}.{minor}" for major, minor in self.versions],
            "certificate_ends": None if ends is None else ends.isoformat(),
        }


class _Finding:
    """The facts of a try, as far as it came."""

    def __init__(self) -> None:
        self.is_connected = True
        self.is_silent = False  # connected, and no answer in time
        self.tls = ""
        self.certificate: x509.Certificate | None = None
        self.versions: tuple[Version, ...] = ()

    def not_connected(self) -> None:
        """Note that TCP did not connect."""
        self.is_connected = False

    def handshaken(self, stream: tls.TlsStream) -> None:
        """Note the outcome of the handshake."""
        self.tls = stream.version
        self.certificate = stream.peer_certificate()

    def timeout(self, seconds: float) -> tuple[str, str]:
        """Return the reason and the detail for a try that had no end within ``seconds``: where it stood."""
        if not self.is_connected:
            return "no_connection", f"no connection within {seconds:g} s"
        self.is_silent = True
        if self.certificate is None:
            return "timeout", f"connected, but no TLS handshake within {seconds:g} s"
        return "timeout", f"TLS handshake made, but no answer to the first request within {seconds:g} s"

    @property
    def ends(self) -> datetime | None:
        """The end of the key manager's certificate."""
        return None if self.certificate is None else self.certificate.not_valid_after_utc


class ConnectionCheck:
    """The check of one configuration. ``chain`` is a client's certificate, for identities whose own are minted.

    Raises ConfigError, as ``run`` does, if a file can't be used.
    """

    def __init__(self, config: Config, nursery: trio.Nursery, chain: Sequence[x509.Certificate] = ()) -> None:
        self._config = config
        self._upstream = Upstream(config, nursery, Metrics("check"))
        self._chain = chain
        self._clients = _identities_of(config, chain)
        self._minted: dict[str, MintedCertificate | Attempt] = {}
        self._all = trio.CapacityLimiter(_ALL_AT_ONCE)
        self._found: dict[tuple[int, int, int], Attempt] = {}  # by the positions of backend, address and identity

    def __repr__(self) -> str:
        return f"<ConnectionCheck of {len(self._config.backends)} backends, {len(self._found)} tries done>"

    async def run(self) -> list[Attempt]:
        """Make all tries, and return them in the order of the configuration."""
        for identity in self._config.identities:
            if identity.credential == "minted":
                self._minted[identity.name] = self._mint(identity)
        async with trio.open_nursery() as nursery:
            for position, settings in enumerate(self._config.backends):
                nursery.start_soon(self._check_backend, position, settings)
        found = [self._found[key] for key in sorted(self._found)]
        return found if self._config.replication.answer_discover_versions else with_common_versions(found)

    def _mint(self, identity: IdentityConfig) -> MintedCertificate | Attempt:
        """Issue the certificate of the client; return the Attempt that stands for all tries if none can be issued."""
        if identity.name not in self._clients:
            detail = "this identity has no certificate of its own: one is minted for each client"
            if self._chain:
                detail = "this identity is not that of the given client's certificate"
            return _attempt("", "", identity.name, NOT_TRIED, "minted", detail)
        try:
            client = self._chain[0].public_bytes(Encoding.DER)
            return IssuingCa.of(identity).issue(client, datetime.now(UTC))
        except (MintingError, ValueError) as error:
            return _attempt("", "", identity.name, FAILED, "not_minted", str(error))

    async def _check_backend(self, position: int, settings: BackendConfig) -> None:
        deadline = self._config.deadlines.connect
        detail = f"the name was not resolved within {deadline:g} s"
        hosts: list[str] = []
        with trio.move_on_after(deadline):
            try:
                hosts = await look_up(settings.address)
            except (OSError, UnicodeError) as error:
                detail = f"can't resolve {settings.address.host}: {getattr(error, 'strerror', None) or error}"
        if not hosts:
            self._found[position, 0, 0] = _attempt(settings.name, str(settings.address), "", FAILED, "resolve", detail)
            return
        limiter = trio.CapacityLimiter(_AT_ONCE)
        async with trio.open_nursery() as nursery:
            for number, host in enumerate(hosts):
                nursery.start_soon(self._check_address, (position, number), settings, host, limiter)

    async def _check_address(
        self, place: tuple[int, int], settings: BackendConfig, host: str, limiter: trio.CapacityLimiter
    ) -> None:
        """Try every identity, one by one until the address answers: others must not wait for a silent address."""
        address = str(Address(host, settings.address.port))
        silent = 0
        is_first = True
        async with trio.open_nursery() as nursery:
            for number, identity in enumerate(self._config.identities):
                key = (*place, number)
                minted = self._minted.get(identity.name)
                if isinstance(minted, Attempt):
                    self._found[key] = minted._replace(backend=settings.name, address=address)
                    continue
                if silent == _SILENT:
                    detail = f"{_SILENT} identities before this one got no answer at this address"
                    self._found[key] = _attempt(settings.name, address, identity.name, NOT_TRIED, "silent", detail)
                    continue
                check = partial(self._check_identity, key, settings, host, identity, limiter, minted)
                if not is_first:
                    nursery.start_soon(check)
                    continue
                finding = await check()
                if not finding.is_connected:
                    return
                silent += finding.is_silent
                is_first = finding.is_silent

    async def _check_identity(
        self,
        key: tuple[int, int, int],
        settings: BackendConfig,
        host: str,
        identity: IdentityConfig,
        limiter: trio.CapacityLimiter,
        minted: MintedCertificate | None,
    ) -> _Finding:
        """Make one try."""
        finding = _Finding()
        address = Address(host, settings.address.port)
        endpoint = Endpoint(settings.address, (host,))
        endpoint.connect_failed = finding.not_connected
        target = self._upstream.session_target(settings, identity, settings.name, endpoint)
        target = target._replace(minted=minted, handshaken=finding.handshaken)
        async with limiter, self._all:
            began = trio.current_time()
            result, reason, detail = await self._try(target, finding, settings)
            seconds = trio.current_time() - began
        if reason == "timeout":
            reason, detail = finding.timeout(self._config.deadlines.connect)
        if reason == "hostname":
            detail += f"; it is for {_names(finding.certificate)}"
        self._found[key] = _attempt(
            settings.name, str(address), identity.name if finding.is_connected else "", result, reason, detail
        )._replace(
            milliseconds=round(seconds * 1000, 1),
            tls=finding.tls,
            versions=finding.versions,
            certificate_ends=finding.ends,
        )
        return finding

    async def _try(self, target: SessionTarget, finding: _Finding, settings: BackendConfig) -> tuple[str, str, str]:
        """Open a session and ask for versions. Return the result, the reason and the detail."""
        deadline = self._config.deadlines.connect
        response: Response | None = None
        try:
            with trio.move_on_after(deadline):
                session = await open_session(target)
                try:
                    with trio.move_on_after(self._config.health.timeout):
                        response = await session.exchange(self._second_request(target, settings))
                finally:
                    session.close()
                if response is None:
                    finding.is_silent = True
                    return FAILED, "no_answer", f"no answer within {self._config.health.timeout:g} s"
            if response is None:
                return FAILED, "timeout", f"no session within {deadline:g} s"
        except BackendError as error:
            return FAILED, error.cause, error.args[0]
        except Exception as error:  # noqa: BLE001 - as in Opening: an odd key manager must not end the check
            return FAILED, "unexpected", quoted(f"{type(error).__name__}: {error}")
        finding.versions = tuple(sorted(offered_versions(response) or ()))
        return _judged(response, finding.ends)

    def _second_request(self, target: SessionTarget, settings: BackendConfig) -> Request:
        """Return the request whose answer is looked at: validation takes any answer."""
        if settings.probe != "discover-versions":
            return target.validation_request
        password = self._upstream.passwords.get("" if target.own is None else target.own.identity)
        return DISCOVER_VERSIONS if password is None else password.added_to(DISCOVER_VERSIONS)


def _judged(response: Response, ends: datetime | None) -> tuple[str, str, str]:
    """Return the result, the reason and the detail for an answer, and for the end of the key manager's certificate."""
    item = response.items[0]
    if item.status != ResultStatus.SUCCESS:
        detail = f"the key manager answers {reason_name(item.reason or 0)}: {quoted(item.message or '')}"
        refusal = _REFUSALS.get(item.reason or 0)
        return (WARNING, "error_answer", detail) if refusal is None else (FAILED, refusal, detail)
    if ends is not None and ends - datetime.now(UTC) < _SOON:
        return WARNING, "ends_soon", f"the key manager's certificate ends on {ends:%Y-%m-%d}"
    return OK, "", ""


def _attempt(backend: str, address: str, identity: str, result: str, reason: str, detail: str) -> Attempt:
    remedy = remedy_for(reason) if reason else ""
    return Attempt(backend, address, identity, result, reason, detail, remedy)


def _identities_of(config: Config, chain: Sequence[x509.Certificate]) -> frozenset[str]:
    """Return the names of the identities that a client with this certificate gets on the listeners."""
    if not chain:
        return frozenset()
    outcomes = explain(config, chain).listeners
    return frozenset(outcome.identity.name for outcome in outcomes if outcome.identity is not None)


def with_common_versions(attempts: list[Attempt]) -> list[Attempt]:
    """Return the tries with a warning for each whose key manager lacks versions of KMIP that another offers."""
    known = [set(each.versions) for each in attempts if each.versions]
    every: set[Version] = set().union(*known)
    found = []
    for each in attempts:
        missing = sorted(every.difference(each.versions)) if each.versions else []
        if missing and each.result == OK:
            names = ", ".join(f"{major}.{minor}" for major, minor in missing)
            detail = f"does not offer KMIP {names}, which other key managers do: clients may choose it, and fail here"
            each = each._replace(  # noqa: PLW2901 - the same try
                result=WARNING, reason="versions_differ", detail=detail, remedy=remedy_for("versions_differ")
            )
        found.append(each)
    return found


def _names(certificate: x509.Certificate | None) -> str:
    if certificate is None:
        return "no name"
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *UNREADABLE_CERTIFICATE):
        return "no name: it has no subject alternative names"
    values = [str(getattr(name, "value", name)) for name in names]
    more = f" and {len(values) - _NAMES} more" if len(values) > _NAMES else ""
    return quoted(", ".join(values[:_NAMES])) + more


async def _run(config: Config, chain: Sequence[x509.Certificate]) -> list[Attempt]:
    async with trio.open_nursery() as nursery:
        return await ConnectionCheck(config, nursery, chain).run()


def check_connections(config: Config, chain: Sequence[x509.Certificate] = ()) -> list[Attempt]:
    """Make all tries. To be called outside of an event loop. Raises ConfigError."""
    try:
        return trio.run(_run, config, chain)
    except* ConfigError as errors:
        mistakes = _mistakes(errors)
    raise ConfigError(mistakes)


def _mistakes(error: BaseException) -> list[str]:
    if isinstance(error, BaseExceptionGroup):
        return [mistake for inner in error.exceptions for mistake in _mistakes(inner)]
    return error.mistakes if isinstance(error, ConfigError) else []


_HEAD: Final = ("backend", "address", "identity", "result", "ms", "TLS", "KMIP", "certificate until")


def table(attempts: Sequence[Attempt]) -> list[str]:
    """Return the tries as lines: a table, and below the tries that are not well their detail and their remedy.

    Identities that fail at one address for the same reason stand together, above one detail. The reasons of tries that
    were not made come last, once each.
    """
    rows = [_HEAD, *map(_cells, attempts)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]

    def line(row: tuple[str, ...]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

    lines = [line(_HEAD)]
    groups: dict[tuple[str, ...], list[Attempt]] = {}
    for each in attempts:
        groups.setdefault((each.backend, each.address, each.result, each.reason, each.detail), []).append(each)
    for group in groups.values():
        lines += [line(_cells(each)) for each in group]
        if group[0].reason and group[0].result != NOT_TRIED:
            lines += _explained(group[0])
    untried: dict[tuple[str, ...], list[Attempt]] = {}
    for each in attempts:
        if each.result == NOT_TRIED:
            untried.setdefault((each.reason, each.detail), []).append(each)
    for group in untried.values():
        lines += [f"not tried: {', '.join(dict.fromkeys(each.identity for each in group))}", *_explained(group[0])]
    return lines


def _explained(attempt: Attempt) -> list[str]:
    return [f"    {attempt.detail} ({attempt.reason})", f"    remedy: {attempt.remedy}"]


def _cells(attempt: Attempt) -> tuple[str, ...]:
    ends = attempt.certificate_ends
    return (
        attempt.backend,
        attempt.address,
        attempt.identity or "any",
        attempt.result,
        "-" if attempt.milliseconds is None else f"{attempt.milliseconds:.0f}",
        attempt.tls or "-",
        _spans(attempt.versions) or "-",
        "-" if ends is None else f"{ends:%Y-%m-%d}",
    )


def _spans(versions: Sequence[Version]) -> str:
    """Return versions in short: 1.0-1.4 2.1."""
    spans: list[tuple[Version, Version]] = []
    for version in versions:
        if spans and version == (spans[-1][1][0], spans[-1][1][1] + 1):
            spans[-1] = (spans[-1][0], version)
        else:
            spans.append((version, version))
    return " ".join(f"{a}.{b}" if (a, b) == (c, d) else f"{a}.{b}-{c}.{d}" for (a, b), (c, d) in spans)


def counts(attempts: Sequence[Attempt]) -> Mapping[str, int]:
    """Return the number of tries by their results."""
    return {result: sum(each.result == result for each in attempts) for result in (OK, WARNING, FAILED, NOT_TRIED)}
