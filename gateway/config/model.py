"""Tables of the configuration, as frozen values. `config/gateway.toml` describes each setting."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from gateway.config.credentials import (
    BELONGS_TO,
    ClientCredential,
    CredentialKind,
    MintedKey,
    check_belongs,
    check_names_someone,
)
from gateway.config.files import (
    AuditFile,
    AuditKeyFile,
    BackendCrlFiles,
    CaFile,
    CertificateFile,
    ClientCrlFiles,
    ClientIssuerFile,
    IssuingCaFile,
    IssuingKeyFile,
    MarkKeyFile,
    MaybeCaFile,
    MaybeCertificateFile,
    MaybePrivateKeyFile,
    MaybeTokenFile,
    OwnCertificateFile,
    OwnKeyFile,
    PeerSocket,
    PrivateKeyFile,
    SecretFile,
    SocketFile,
)
from gateway.config.patterns import WILDCARDS
from gateway.config.values import (
    ALL,
    GROUP_OF,
    Address,
    AllowedOperations,
    Balancers,
    Bind,
    CredentialText,
    Fingerprints,
    Hosts,
    KeepAlive,
    Name,
    Names,
    Networks,
    ObjectTypes,
    Patterns,
    PeerAddress,
    Pins,
    RefusedOperations,
    ResponseSize,
    Seconds,
    ServerName,
    Size,
    TlsWorkerCount,
)
from gateway.kmip.decode import MAX_BATCH_ITEMS, MAX_DEPTH, MAX_FIELDS, MAX_RESPONSE_FIELDS

TlsPolicy = Literal["modern", "compatible", "legacy"]
Probe = Literal["discover-versions", "query"]
Role = Literal["rw", "ro"]
Addresses = Literal["auto", "one", "each"]
Balancing = Literal["round-robin", "least-outstanding"]
WhenNone = Literal["answer", "close"]
WhenStale = Literal["refuse", "accept"]
KeyPermissions = Literal["refuse", "warn"]
Confinement = Literal["auto", "require", "off"]

DEFAULT_TLS_POLICY: Final = "modern"
DEFAULT_BACKEND_TLS_POLICY: Final = "compatible"
DEFAULT_RESUMPTION_LIFETIME: Final = 3600  # s

_SMALLEST_AUDIT_FILE: Final = 64 * 1024  # bytes
#: s. Servers, such as PyKMIP's, refuse a request whose Time Stamp is older than a minute: a request that waited in the
#: queue must not become too old.
_LONGEST_REQUEST: Final = 55.0


class Table(BaseModel):
    """A table of the file: frozen; unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def adopt(self, other: Self, keys: Iterable[str]) -> None:
        """Take over values of another table in place, so that all objects that hold this table use them from now on.

        Only a reload does this, with tables of the core's own copy: see ``Core``.
        """
        for key in keys:
            self.__dict__[key] = getattr(other, key)


class ListenerConfig(Table):
    """An address for clients, and the limits of their connections."""

    name: Name
    bind: Bind
    certificate: CertificateFile
    passphrase_file: SecretFile = Field(default="", validate_default=True)
    private_key: PrivateKeyFile
    client_ca: CaFile
    client_crl: ClientCrlFiles = ()
    crl_stale: WhenStale = "refuse"
    tls_policy: TlsPolicy = DEFAULT_TLS_POLICY
    max_clients: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 10_000
    handshake_timeout: Seconds = 10.0
    request_timeout: Seconds = 10.0
    idle_timeout: Seconds = 3600.0
    send_timeout: Seconds = 10.0
    tcp_keepalive: KeepAlive = 60
    tcp_user_timeout: Seconds = 120.0
    reuse_port: bool = Field(default=False, strict=True)
    resumption_lifetime: Annotated[int, Field(strict=True, ge=1, le=86400)] = DEFAULT_RESUMPTION_LIFETIME
    proxy_protocol: bool = Field(default=False, strict=True)
    proxy_from: Balancers = Field(default=(), validate_default=True)

    @field_validator("proxy_from")
    @classmethod
    def _belongs_to_proxy_protocol(cls, proxy_from: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        is_read = info.data.get("proxy_protocol")
        if is_read and not proxy_from:
            raise ValueError(
                "missing, and proxy_protocol is true: without it, anyone could send a header with any address; give the"
                ' addresses of the load balancers, such as proxy_from = ["10.0.0.0/8"]'
            )
        if is_read is False and proxy_from:
            raise ValueError("has no effect while proxy_protocol is false; set it to true, or leave this line out")
        return proxy_from


class BackendOptions(Table):
    """The share of a backend among the backends of its priority, its priority (the lowest serves), and its role."""

    weight: Annotated[int, Field(strict=True, ge=1, le=100)] = 1
    priority: Annotated[int, Field(strict=True, ge=0, le=9)] = 0
    role: Role = "rw"


class BackendConfig(BackendOptions):
    """One key manager. ``server_name`` is never empty: by default it is the host of the address."""

    name: Name
    address: PeerAddress
    addresses: Addresses = "auto"
    pinned_sha256: Pins = ()
    ca: CaFile | None = Field(default=None, validate_default=True)
    crl: BackendCrlFiles = ()
    crl_stale: WhenStale = "refuse"
    tls_policy: TlsPolicy = DEFAULT_BACKEND_TLS_POLICY
    server_name: ServerName = Field(default="", validate_default=True)
    max_sessions: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 64
    probe: Probe = "discover-versions"

    @field_validator("ca")
    @classmethod
    def _is_verified(cls, ca: Path | None, info: ValidationInfo) -> Path | None:
        if ca is None and info.data.get("pinned_sha256") == ():
            raise ValueError(
                "missing; give a file with the CA that issued the key manager's certificate, or pin the certificate"
                " with pinned_sha256"
            )
        return ca

    @field_validator("server_name")
    @classmethod
    def _address_unless_named(cls, server_name: str, info: ValidationInfo) -> str:
        address = info.data.get("address")
        return server_name or (address.host if isinstance(address, Address) else "")


class MatchConfig(Table):
    """Clients that an identity rule matches. Each key that is given must match, with any of its values.

    ``subject_cn``, the names and ``issuer`` are shell-style patterns, ``san_ip`` addresses or networks. In DNS names,
    and in the domains of e-mail addresses, a wildcard stands for characters of one label. ``issuer`` is compared with
    the issuer's whole name as RFC 4514 writes it: ``CN=Clients CA,O=Example``.
    """

    subject_cn: Patterns = ()
    san_dns: Patterns = ()
    san_email: Patterns = ()
    san_uri: Patterns = ()
    san_ip: Networks = ()
    issuer: Patterns = ()
    fingerprint_sha256: Fingerprints = ()

    @model_validator(mode="after")
    def _matches_something(self) -> Self:
        if not any(getattr(self, key) for key in type(self).model_fields):
            keys = ", ".join(type(self).model_fields)
            raise ValueError(f"is empty, and would match everyone; give at least one of {keys}")
        return self


def matches_many(match: MatchConfig) -> bool:
    """Return False if a key besides ``issuer`` is one literal value; otherwise several subjects can match."""
    return why_many(match) is not None


def why_many(match: MatchConfig) -> str | None:
    """Return the reason why several subjects can match, or None if at most one can."""
    narrowing = {key: getattr(match, key) for key in MatchConfig.model_fields if key != "issuer"}
    reasons = [_breadth(key, values) for key, values in narrowing.items() if values]
    if not reasons:
        return "issuer alone matches every client that it certifies"
    return None if None in reasons else ", ".join(reason for reason in reasons if reason)


def _breadth(key: str, values: tuple[str, ...]) -> str | None:
    if len(values) > 1:
        return f"{key} has {len(values)} values"
    if key == "san_ip":
        return f"{key} is a network" if "/" in values[0] else None
    return f"{key} has a wildcard" if WILDCARDS & set(values[0]) else None


PerSecond = Annotated[float, Field(strict=True, ge=0, le=1_000_000, allow_inf_nan=False)]


class AllowanceConfig(Table):
    """Limits of one principal: connections, requests in flight, and requests a second (0 is any number)."""

    max_clients: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 5000
    max_requests: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 1000
    requests_per_second: PerSecond = 0.0
    request_burst: PerSecond = 0.0


class PolicyConfig(Table):
    """Permissions of an identity: operations, by their names or those of groups, object types, and size of a batch.

    ``max_batch_items`` 0 stands for ``limits.max_batch_items``.
    """

    allow: AllowedOperations = (ALL,)
    refuse: RefusedOperations = ()
    object_types: ObjectTypes = (ALL,)
    max_batch_items: Annotated[int, Field(strict=True, ge=0, le=100_000)] = 0

    @field_validator("refuse")
    @classmethod
    def _contradicts_nothing(cls, refuse: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        both = [name for name in info.data.get("allow", ()) if name in refuse]
        if both:
            raise ValueError(f'has "{both[0]}", which allow has, too; leave it out of one of them')
        taken_back = [name for name in info.data.get("allow", ()) if GROUP_OF.get(name) in refuse]
        if taken_back:
            group, name = GROUP_OF[taken_back[0]], taken_back[0]
            raise ValueError(f'has "{group}", in which "{name}" of allow is; leave one of them out')
        return refuse


class DeviceConfig(Table):
    """Names of a device in a KMIP Credential (1.4 section 2.1.2); "" is none."""

    serial_number: CredentialText = ""
    identifier: CredentialText = ""
    network_identifier: CredentialText = ""
    machine_identifier: CredentialText = ""
    media_identifier: CredentialText = ""

    def __bool__(self) -> bool:
        return any(getattr(self, key) for key in type(self).model_fields)


#: Values of settings that were not given.
_NOTHING: Final = (None, "", DeviceConfig())


class IdentityConfig(AllowanceConfig, PolicyConfig):
    """A rule that names clients, and the credential that the gateway shows the key managers for them.

    The credential is of one of three kinds. ``fixed``: a certificate from files. ``minted``: a certificate with the
    client's own names, which the gateway issues itself. ``password``: a certificate from files, and a KMIP Credential
    in each request. The key managers take all clients that a rule with a fixed credential or a password matches for one
    client, who sees the keys of all of them. So a rule that can match many must say ``shared = true``. ``listeners``
    are names of listeners; empty stands for all.
    """

    name: Name
    match: MatchConfig
    listeners: Names = ()
    credential: CredentialKind = "fixed"
    shared: bool = Field(default=False, strict=True, validate_default=True)
    certificate: OwnCertificateFile = Field(default="", validate_default=True)
    passphrase_file: SecretFile = Field(default="", validate_default=True)
    private_key: OwnKeyFile = Field(default="", validate_default=True)
    client_issuer: ClientIssuerFile = Field(default="", validate_default=True)
    issuing_ca: IssuingCaFile = Field(default="", validate_default=True)
    issuing_ca_passphrase_file: SecretFile = Field(default="", validate_default=True)
    issuing_ca_key: IssuingKeyFile = Field(default="", validate_default=True)
    minted_key: MintedKey = "ec-p256"
    minted_lifetime: Annotated[int, Field(strict=True, ge=300, le=7 * 86400)] = 14400
    username: CredentialText = ""
    device: DeviceConfig = Field(default={}, validate_default=True)
    password_file: SecretFile = Field(default="", validate_default=True)
    client_credential: ClientCredential = "refuse"

    @field_validator("shared")
    @classmethod
    def _says_so_if_many_share(cls, shared: bool, info: ValidationInfo) -> bool:
        match = info.data.get("match")
        if info.data.get("credential") == "minted":
            if shared:
                raise ValueError(
                    'has no effect while credential is "minted", which shows the names of each client; leave this line'
                    " out"
                )
        elif not shared and match is not None and (why := why_many(match)) is not None:
            raise ValueError(
                f"is false, but match can match more than one client ({why}), and the gateway shows the key managers"
                " one certificate for all of them: they would see, use and destroy each other's keys; narrow match to"
                " one literal value, or set shared = true if that is intended"
            )
        return shared

    @field_validator(*BELONGS_TO)
    @classmethod
    def _belongs_to_the_credential(cls, value: Any, info: ValidationInfo) -> Any:
        name, kind = str(info.field_name), info.data.get("credential")
        if kind is None:
            return value
        check_belongs(name, kind, is_given=value not in _NOTHING and value != cls.model_fields[name].default)
        if name == "device" and "username" in info.data:
            check_names_someone(kind, info.data["username"], value)
        if name == "password_file" and value is None and info.data.get("username"):
            raise ValueError("missing, and username is given; name a file with the password of that user")
        return value

    @property
    def own_file(self) -> Path:
        """The certificate in whose place the gateway stands: the one that is shown, or the CA that issues those."""
        path = self.issuing_ca if self.credential == "minted" else self.certificate
        assert path is not None  # noqa: S101 - the validators have seen to it
        return path

    @property
    def secret_files(self) -> dict[str, Path]:
        """The files with secrets, by the names of their settings."""
        names = ("passphrase_file", "private_key", "issuing_ca_passphrase_file", "issuing_ca_key", "password_file")
        return {name: path for name in names if (path := getattr(self, name)) is not None}


class GatewayConfig(Table):
    """The processes of the gateway. ``tls_workers`` is a number, or "auto": one for each processor but one.

    With ``watch_files``, a change of a certificate, a key or a CA reloads the configuration. ``user`` and ``group`` are
    names or numbers; empty stands for the user that starts the gateway, and for the user's own group. ``watchdog`` is
    in seconds; 0 turns it off.
    """

    tls_workers: TlsWorkerCount = 0
    watch_files: bool = Field(default=True, strict=True)
    user: str = Field(default="", strict=True)
    group: str = Field(default="", strict=True)
    key_permissions: KeyPermissions = "refuse"
    confinement: Confinement = "auto"
    watchdog: Annotated[float, Field(strict=True, ge=0, le=3600, allow_inf_nan=False)] = 30.0


class AdminConfig(Table):
    """The admin port, which serves metrics and health over HTTP.

    ``hosts`` are further names that a Host header may have, besides the host of ``bind``, localhost and IP addresses.
    ``socket`` is the path of the control socket; None: there is none. The other files are None if they are not used:
    with ``certificate`` the port speaks TLS, with ``client_ca`` and with ``token_file`` metrics are for clients that
    show a certificate, or a token.
    """

    bind: Bind = Address("127.0.0.1", 9696)
    hosts: Hosts = ()
    socket: SocketFile = Field(default="", validate_default=True)
    certificate: MaybeCertificateFile = Field(default="", validate_default=True)
    private_key: MaybePrivateKeyFile = Field(default="", validate_default=True)
    client_ca: MaybeCaFile = Field(default="", validate_default=True)
    token_file: MaybeTokenFile = Field(default="", validate_default=True)
    anonymous_metrics: bool = Field(default=False, strict=True)


class PoolConfig(Table):
    """Limits and times of the sessions of each backend and credential.

    ``max_principals`` is the number of clients whose minted certificates and sessions are kept.
    """

    max_principals: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 1000
    min_idle: Annotated[int, Field(strict=True, ge=0, le=10_000)] = 1
    idle_timeout: Seconds = 25.0
    max_lifetime: Seconds = 3600.0
    lifetime_spread: Annotated[float, Field(strict=True, ge=0, le=0.9, allow_inf_nan=False)] = 0.1
    queue_length: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] = 1000
    queue_timeout: Seconds = 5.0
    validate_after: Seconds = 1.0
    tcp_keepalive: KeepAlive = 5
    tcp_user_timeout: Seconds = 10.0


class BalancingConfig(Table):
    """Distribution of requests over the backends."""

    policy: Balancing = "round-robin"
    resolve_interval: Seconds = 30.0


Ratio = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]


class FailoverConfig(Table):
    """Retries, ejection of backends that fail, and refusal of connections while no backend can be reached."""

    try_timeout: Seconds = 5.0
    retry_ratio: Ratio = 0.2
    min_retries: Annotated[int, Field(strict=True, ge=0, le=1000)] = 3
    consecutive_failures: Annotated[int, Field(strict=True, ge=1, le=1000)] = 3
    max_ejection_time: Seconds = 30.0
    when_none: WhenNone = "close"


class ReplicationConfig(Table):
    """Measures for state that a key manager gets late from the others (replicas), or never (correlation values)."""

    mode: Literal["shared", "async"] = "shared"
    read_your_writes_window: Seconds = 10.0
    fallback_on_not_found: bool = Field(default=True, strict=True)
    marks: bool = Field(default=True, strict=True)
    mark_key_file: MarkKeyFile = Field(default=Path("mark.key"), validate_default=True)
    answer_discover_versions: bool = Field(default=True, strict=True)
    lookup_ratio: Ratio = 0.2
    min_lookups_per_second: Annotated[float, Field(strict=True, ge=0, le=1000, allow_inf_nan=False)] = 1.0


class HealthConfig(Table):
    """Health checks of backends. ``credential`` is the name of an identity; empty stands for the first."""

    credential: str = Field(default="", strict=True)
    interval: Seconds = 2.0
    timeout: Seconds = 2.0
    jitter: Annotated[float, Field(strict=True, ge=0, le=0.9, allow_inf_nan=False)] = 0.2
    rise: Annotated[int, Field(strict=True, ge=1, le=100)] = 2
    fall: Annotated[int, Field(strict=True, ge=1, le=100)] = 3
    expect_status: Literal["answer", "success"] = "answer"
    expect_text: str = Field(default="", strict=True)
    observe: bool = Field(default=True, strict=True)


def _younger_than_a_minute(request: float) -> float:
    if request > _LONGEST_REQUEST:
        raise ValueError(
            f"{request:g} is too much; at most {_LONGEST_REQUEST:g} is allowed, because key managers refuse requests"
            " that are a minute old"
        )
    return request


class DeadlinesConfig(Table):
    """Deadlines in seconds."""

    request: Annotated[Seconds, AfterValidator(_younger_than_a_minute)] = 30.0
    connect: Seconds = 3.0
    lame_duck: Annotated[float, Field(strict=True, ge=0, le=3600, allow_inf_nan=False)] = 0.0
    drain: Seconds = 10.0
    retire: Seconds = 600.0


class LimitsConfig(Table):
    """Limits of one message, and of the whole gateway."""

    max_request_size: Size = 1024 * 1024
    max_response_size: ResponseSize = 2 * 1024 * 1024
    max_depth: Annotated[int, Field(strict=True, ge=8, le=128)] = MAX_DEPTH
    max_batch_items: Annotated[int, Field(strict=True, ge=1, le=100_000)] = MAX_BATCH_ITEMS
    max_fields: Annotated[int, Field(strict=True, ge=100, le=10_000_000)] = MAX_FIELDS
    max_response_fields: Annotated[int, Field(strict=True, ge=100, le=10_000_000)] = MAX_RESPONSE_FIELDS
    max_clients: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 20_000
    max_half_open: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 1000
    max_requests: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 10_000
    max_buffered: Annotated[int, Field(strict=True, ge=1024 * 1024, le=1 << 40)] = 256 * 1024 * 1024


class PerAddressConfig(Table):
    """Limits of one source address, applied before the TLS handshake. The prefixes are in bits."""

    max_clients: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 5000
    max_half_open: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 500
    handshakes_per_second: PerSecond = 0.0
    handshake_burst: PerSecond = 0.0
    ipv4_prefix: Annotated[int, Field(strict=True, ge=8, le=32)] = 32
    ipv6_prefix: Annotated[int, Field(strict=True, ge=16, le=128)] = 64

    @field_validator("handshake_burst")
    @classmethod
    def _belongs_to_a_rate(cls, burst: float, info: ValidationInfo) -> float:
        if burst and info.data.get("handshakes_per_second") == 0:
            raise ValueError(
                "has no effect while handshakes_per_second is 0 (no limit); set a rate, or leave this line out"
            )
        return burst


class LogConfig(Table):
    """Level and format of the log. ``slow_request``: seconds of a request that is logged as slow; 0 stands for none."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    slow_request: Annotated[float, Field(strict=True, ge=0, le=3600, allow_inf_nan=False)] = 1.0


class AuditConfig(Table):
    """The audit trail: its place, the requests that get a line, and the consequence if it can't be written.

    ``max_size`` and ``max_queued`` are in bytes; ``max_size`` 0 stands for no rotation by size.
    """

    to: Literal["off", "file", "stdout", "syslog"] = "off"
    file: AuditFile = Field(default=Path("audit.jsonl"), validate_default=True)
    syslog: PeerSocket = Path("/dev/log")
    requests: Literal["all", "changes"] = "all"
    on_failure: Literal["continue", "refuse"] = "continue"
    max_size: Annotated[int, Field(strict=True, ge=0, le=1 << 40)] = 100 * 1024 * 1024
    keep: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 10
    max_queued: Annotated[int, Field(strict=True, ge=64 * 1024, le=1 << 30)] = 16 * 1024 * 1024
    key_file: AuditKeyFile = Field(default="", validate_default=True)

    @field_validator("max_size")
    @classmethod
    def _not_tiny(cls, size: int) -> int:
        if 0 < size < _SMALLEST_AUDIT_FILE:
            raise ValueError(
                f"{size} is too little for a file of an audit trail; give at least {_SMALLEST_AUDIT_FILE}, or 0 for no"
                " rotation"
            )
        return size


def _at_least_one(tables: tuple[Table, ...]) -> tuple[Table, ...]:
    if not tables:
        raise ValueError("is empty; give at least one table")
    return tables


class Config(Table):
    """The whole configuration. The rules between tables are checked by ``load`` only."""

    listeners: Annotated[tuple[ListenerConfig, ...], AfterValidator(_at_least_one)]
    backends: Annotated[tuple[BackendConfig, ...], AfterValidator(_at_least_one)]
    identities: Annotated[tuple[IdentityConfig, ...], AfterValidator(_at_least_one)]
    gateway: GatewayConfig = GatewayConfig()
    admin: AdminConfig = AdminConfig()
    pool: PoolConfig = PoolConfig()
    balancing: BalancingConfig = BalancingConfig()
    failover: FailoverConfig = FailoverConfig()
    replication: ReplicationConfig = ReplicationConfig()
    health: HealthConfig = HealthConfig()
    deadlines: DeadlinesConfig = DeadlinesConfig()
    limits: LimitsConfig = LimitsConfig()
    per_address: PerAddressConfig = PerAddressConfig()
    log: LogConfig = LogConfig()
    audit: AuditConfig = AuditConfig()


def _table(section: str) -> type[Table]:
    annotation: Any = Config.model_fields[section].annotation
    table: type[Table] = next(iter(get_args(annotation)), annotation)
    return table


#: The table of each section; for those written [[section]], the table of one of them.
SECTIONS: Final = {section: _table(section) for section in Config.model_fields}
#: The sections written [[section]].
LISTS: Final = frozenset(section for section, field in Config.model_fields.items() if get_args(field.annotation))
