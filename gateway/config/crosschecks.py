"""Rules between settings: names that are used twice, limits that contradict each other.

They are checked in a Draft, so that their mistakes are reported together with the mistakes of single settings. Those
between credentials are in ``credential_checks``.
"""

import ipaddress
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from gateway.config.credential_checks import check_credentials
from gateway.config.draft import Draft
from gateway.config.files import expired_in, first_of, trusted_by
from gateway.config.mistakes import At, Mistake
from gateway.config.model import LISTS, SECTIONS, MatchConfig
from gateway.config.patterns import matches_all_of
from gateway.config.secrecy import CERTIFICATES, SECRETS, exposure, trusted_users
from gateway.config.secret_files import resolved
from gateway.config.values import Address, is_loopback
from gateway.confinement import find_user, landlock_version

_ENVELOPE: Final = 4096  # bytes by which the answer to a Get may be longer than the Register of what it gets

#: Hosts that stand for every address of a family, and the family's version of IP.
_EVERY: Final = {"0.0.0.0": 4, "::": 6}  # noqa: S104 - nothing is bound here


def crosschecked(draft: Draft, folder: Path, now: datetime) -> list[Mistake]:
    """Return the mistakes between settings. Relative paths begin in ``folder``."""
    return [
        *_repeated_names(draft),
        *_clashing_binds(draft),
        *_repeated_addresses(draft),
        *_shared_credentials(draft, folder),
        *check_credentials(draft, folder),
        *_all_expired(draft, folder, now),
        *_unknown_listeners(draft),
        *_rules_for_several_cas(draft, folder),
        *_rules_that_never_match(draft),
        *_too_many_idle(draft),
        *_over_the_deadline(draft),
        *_one_lost_probe(draft),
        *_unknown_credential(draft),
        *_long_batches(draft),
        *_sizes(draft),
        *_exposed_files(draft, folder),
        *_users(draft),
        *_admin_access(draft),
        *_confinement(draft),
    ]


def _repeated_names(draft: Draft) -> Iterator[Mistake]:
    for section in SECTIONS:
        if section in LISTS:
            for first, at, name in _repetitions(draft.column(section, "name")):
                yield Mistake(at, f'"{name}" is also the name of {draft.place(first)}; give each table its own name')


def _repeated_addresses(draft: Draft) -> Iterator[Mistake]:
    addresses = [(at, str(Address.parse(value)).lower()) for at, value in draft.column("backends", "address")]
    for first, at, address in _repetitions(addresses):
        yield Mistake(at, f"{address} is also the address of {draft.place(first)}; list each key manager once")


def _repetitions(cells: Iterable[tuple[At, Hashable]]) -> Iterator[tuple[At, At, Hashable]]:
    """Yield each value that occurs again: its first path, the path of the repetition, and the value."""
    seen: dict[Hashable, At] = {}
    for at, value in cells:
        if seen.setdefault(value, at) is not at:
            yield seen[value], at, value


def _clashing_binds(draft: Draft) -> Iterator[Mistake]:
    binds = [(at, Address.parse(value)) for at, value in draft.column("listeners", "bind")]
    if (admin := draft.setting("admin", "bind")) is not None:
        binds.append((("admin", "bind"), admin if isinstance(admin, Address) else Address.parse(admin)))
    for index, (at, bind) in enumerate(binds):
        clash = next((other for other in binds[:index] if _overlap(other[1], bind)), None)
        if clash is not None:
            other, owner = clash[1], draft.place(clash[0])
            said = f"is also the address of {owner}" if other == bind else f"overlaps {other} of {owner}"
            yield Mistake(at, f"{bind} {said}; give each its own port")


def _overlap(one: Address, other: Address) -> bool:
    if one.port != other.port or one.port == 0:  # each port 0 becomes a free port of its own
        return False
    return one.host.lower() == other.host.lower() or _covers(one.host, other.host) or _covers(other.host, one.host)


def _covers(every: str, host: str) -> bool:
    """Return True if ``every`` is the wildcard of the family of ``host``; a host name may be of either family."""
    return every in _EVERY and _family(host) in {None, _EVERY[every]}


def _family(host: str) -> int | None:
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return None


def _shared_credentials(draft: Draft, folder: Path) -> Iterator[Mistake]:
    """Reject a certificate of two identities: the key managers would take the clients of both for one client."""
    shared = {at[1] for at, value in draft.column("identities", "shared") if value}
    shows = [
        (at, first_of(resolved(folder, value))) for at, value in draft.column("identities", "certificate") if value
    ]
    for first, at, _certificate in _repetitions(shows):
        if not {first[1], at[1]} <= shared:
            yield Mistake(
                at,
                f"is also the certificate of {draft.place(first)}: the clients of both identities would see, use and"
                " destroy each other's keys; give each identity its own certificate, or set shared = true in both if"
                " that is intended",
            )


def _all_expired(draft: Draft, folder: Path, now: datetime) -> Iterator[Mistake]:
    """Reject expired certificates only if every identity has one: the gateway can serve the other identities."""
    shows = [(at, resolved(folder, value)) for at, value in draft.column("identities", "certificate") if value]
    expired = [(at, path, which) for at, path in shows if (which := expired_in(path, now))]
    if len(expired) == draft.length("identities"):
        for at, path, which in expired:
            yield Mistake(at, f"{path} holds {which}; renew it")


def _unknown_listeners(draft: Draft) -> Iterator[Mistake]:
    known = [name for _, name in draft.column("listeners", "name")]
    for at, value in draft.column("identities", "listeners"):
        for name in _names(value):
            if known and name not in known:
                listed = ", ".join(f'"{each}"' for each in known)
                yield Mistake(at, f'there is no listener "{name}"; give names of {listed}')


def _rules_for_several_cas(draft: Draft, folder: Path) -> Iterator[Mistake]:
    """Reject rules that match the names of several CAs: a name identifies a client only among one CA's certificates.

    If listeners trust different CAs, each rule must be limited to listeners that trust the same CAs, or match a
    fingerprint, or name its listeners and be shared. A rule with minted credentials has its CA in client_issuer.
    """
    names = {at[1]: name for at, name in draft.column("listeners", "name")}
    trust = {
        names[at[1]]: trusted_by(resolved(folder, value))
        for at, value in draft.column("listeners", "client_ca")
        if at[1] in names
    }
    matches = {at[1]: value for at, value in draft.column("identities", "match")}
    shared = {at[1] for at, value in draft.column("identities", "shared") if value}
    minted = {at[1] for at, value in draft.column("identities", "credential") if value == "minted"}
    for at, value in draft.column("identities", "listeners"):
        if at[1] in minted:
            continue
        named = _names(value)
        meant = [name for name in named or trust if name in trust]
        other = next((name for name in meant if trust[name] != trust[meant[0]]), None)
        if other is None or "fingerprint_sha256" in matches.get(at[1], ()) or (named and at[1] in shared):
            continue
        both = f'"{meant[0]}" and "{other}" trust different CAs, so that two clients with the same name can match'
        if named:
            yield Mistake(at, f"{both}; name listeners with the same CAs, or set shared = true if that is intended")
        else:
            yield Mistake(at, f"missing, and {both}; name the listeners of this rule, or match a fingerprint_sha256")


def _rules_that_never_match(draft: Draft) -> Iterator[Mistake]:
    """Reject a rule if an earlier rule is certain to match all its clients, on all its listeners."""
    every = {name for _, name in draft.column("listeners", "name")}
    if len(every) < draft.length("listeners"):
        return
    listeners = {at[1]: set(_names(value)) or every for at, value in draft.column("identities", "listeners")}
    pinned = {at[1]: value for at, value in draft.column("identities", "client_issuer") if value}
    earlier: list[tuple[At, Mapping[str, Sequence[str]]]] = []
    for at, value in draft.column("identities", "match"):
        try:
            match = MatchConfig.model_validate(value)
        except ValidationError:  # a mistake of its own
            continue
        if at[1] not in listeners:
            continue
        patterns = {key: given for key in MatchConfig.model_fields if (given := getattr(match, key))}
        for before, general in earlier:
            if pinned.get(before[1]) not in {None, pinned.get(at[1])}:
                continue  # for the clients of one CA only
            if listeners[before[1]] >= listeners[at[1]] and matches_all_of(general, patterns):
                yield Mistake(
                    at,
                    f"never counts, because {draft.place(before)}, which stands before it, matches all its clients;"
                    " move this rule before that rule, or remove it",
                )
                break
        earlier.append((at, patterns))


def _names(value: Any) -> list[str]:
    """Return the names in a setting that is one name or a list of names."""
    return [value] if isinstance(value, str) else list(value)


def _too_many_idle(draft: Draft) -> Iterator[Mistake]:
    min_idle = draft.setting("pool", "min_idle")
    smallest = min(draft.column("backends", "max_sessions"), key=lambda cell: cell[1], default=None)
    if min_idle is not None and smallest is not None and min_idle > smallest[1]:
        at, most = smallest
        yield Mistake(
            ("pool", "min_idle"),
            f"{min_idle} is more than max_sessions = {most} of {draft.place(at)}; lower min_idle or raise max_sessions",
        )


def _over_the_deadline(draft: Draft) -> Iterator[Mistake]:
    request = draft.setting("deadlines", "request")
    for part in (("deadlines", "connect"), ("pool", "queue_timeout")):
        seconds = draft.setting(*part)
        if request is not None and seconds is not None and seconds > request:
            default = "" if draft.is_given(*part) else ", its default,"
            yield Mistake(
                part,
                f"{seconds:g} s{default} is longer than deadlines.request = {request:g} s, which includes this time;"
                f" set {part[1]} to less, or raise deadlines.request",
            )


def _one_lost_probe(draft: Draft) -> Iterator[Mistake]:
    """Reject a user timeout below twice the keep-alive time.

    Once the user timeout has passed, Linux ends a connection at the first keep-alive probe without an answer.
    """
    times = {
        key: [*draft.column("listeners", key), (("pool", key), draft.setting("pool", key))]
        for key in ("tcp_keepalive", "tcp_user_timeout")
    }
    keepalive = {at[:-1]: value for at, value in times["tcp_keepalive"] if value is not None}
    for at, timeout in times["tcp_user_timeout"]:
        silence = keepalive.get(at[:-1])
        if silence is not None and timeout is not None and timeout < 2 * silence:
            yield Mistake(
                at,
                f"{timeout:g} s is less than twice tcp_keepalive = {silence} s: one lost packet could end an idle"
                f" connection; give at least {2 * silence}, or lower tcp_keepalive",
            )


def _unknown_credential(draft: Draft) -> Iterator[Mistake]:
    credential = draft.setting("health", "credential")
    names = [name for _, name in draft.column("identities", "name")]
    if credential and names and credential not in names:
        known = ", ".join(f'"{name}"' for name in names)
        yield Mistake(("health", "credential"), f'there is no identity "{credential}"; give one of {known}')


def _long_batches(draft: Draft) -> Iterator[Mistake]:
    most = draft.setting("limits", "max_batch_items")
    for at, items in draft.column("identities", "max_batch_items"):
        if most is not None and items > most:
            yield Mistake(
                at,
                f"{items} has no effect, because limits.max_batch_items = {most} refuses such a batch before; lower it,"
                " or raise that limit",
            )


def _sizes(draft: Draft) -> Iterator[Mistake]:
    """Check that a registered object can be retrieved, and that a request and its answer can be held together."""
    request, response, buffered = (
        draft.setting("limits", key) for key in ("max_request_size", "max_response_size", "max_buffered")
    )
    if request is None or response is None:
        return
    if response < request + _ENVELOPE:
        yield Mistake(
            ("limits", "max_response_size"),
            f"{response} is too little for max_request_size = {request}: an object could be registered and never be"
            f" retrieved; give at least {request + _ENVELOPE}",
        )
    least = -(-(request + response) * 5 // 4)  # one client may hold four fifths
    if buffered is not None and buffered < least:
        yield Mistake(
            ("limits", "max_buffered"),
            f"{buffered} is too little: one client may need max_request_size = {request} and max_response_size ="
            f" {response} together, and a fifth of max_buffered is kept for other clients; give at least {least}",
        )


def _exposed_files(draft: Draft, folder: Path) -> Iterator[Mistake]:
    """Reject secrets that other users can read or change, and certificates that everybody can change."""
    if draft.setting("gateway", "key_permissions") != "refuse":
        return
    own = trusted_users(draft.setting("gateway", "user") or "")
    seen: set[Path] = set()
    for settings, is_secret in ((SECRETS, True), (CERTIFICATES, False)):
        for section, keys in settings.items():
            if section == "replication" and not draft.setting("replication", "marks"):
                continue
            for at, value in (cell for key in keys for cell in draft.cells(section, key) if cell[1]):
                file = resolved(folder, value)
                found = None if file in seen else exposure(str(at[-1]), file, own, is_secret=is_secret)
                seen.add(file)
                if found is not None:
                    yield Mistake(
                        at, f'{file} {found.remedy()}; if it must stay so, set gateway.key_permissions = "warn"'
                    )


def _admin_access(draft: Draft) -> Iterator[Mistake]:
    """Reject an admin port that other machines can reach and that everybody may read, and halves of pairs of files."""
    keys = ("certificate", "private_key", "client_ca", "token_file", "anonymous_metrics")
    certificate, private_key, client_ca, token_file, is_anonymous = (draft.setting("admin", key) for key in keys)
    if None in {certificate, private_key, client_ca, token_file, is_anonymous}:
        return  # wrong by itself
    for key, other, has_only_one in (
        ("private_key", "certificate", certificate and not private_key),
        ("certificate", "private_key", private_key and not certificate),
        ("certificate", "client_ca", client_ca and not certificate and not private_key),
    ):
        if has_only_one:
            yield Mistake(
                ("admin", key),
                f"missing, and {other} is given; TLS needs certificate and private_key; add {key}, or leave"
                f" {other} out",
            )
    if is_anonymous and (token_file or client_ca):
        given = " and ".join(key for key, value in (("token_file", token_file), ("client_ca", client_ca)) if value)
        yield Mistake(
            ("admin", "anonymous_metrics"),
            f"contradicts {given}: strangers are either let in or kept out; leave this line out, or {given}",
        )
    bind = draft.setting("admin", "bind")
    bind = bind if bind is None or isinstance(bind, Address) else Address.parse(bind)
    if bind is not None and not (is_loopback(bind) or token_file or client_ca or is_anonymous):
        yield Mistake(
            ("admin", "bind"),
            f"{bind} can be reached by other machines, and all of them could read the metrics; give a token_file, or"
            " certificate, private_key and client_ca; or bind 127.0.0.1; or set anonymous_metrics = true if the network"
            " keeps strangers away",
        )


def _users(draft: Draft) -> Iterator[Mistake]:
    user, group = (draft.setting("gateway", key) for key in ("user", "group"))
    if group and user == "":
        yield Mistake(("gateway", "group"), "has no effect without user; set user, or leave this line out")
    elif user and group is not None:
        try:
            find_user(user, "")
        except ValueError as error:
            yield Mistake(("gateway", "user"), str(error))
            return
        try:
            find_user(user, group)
        except ValueError as error:
            yield Mistake(("gateway", "group"), str(error))


def _confinement(draft: Draft) -> Iterator[Mistake]:
    if draft.setting("gateway", "confinement") == "require" and not landlock_version():
        yield Mistake(
            ("gateway", "confinement"),
            'the kernel has no Landlock, or has it turned off; use Linux 5.13 or later with "landlock" in its lsm='
            ' list, or set this to "auto"',
        )
