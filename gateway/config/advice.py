"""Advice: settings and files with which the gateway runs, and which an operator should look at; for ``check``."""

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from gateway.config.chains import ca_fault, chain_fault
from gateway.config.files import certificates
from gateway.config.model import Config
from gateway.config.summary import certificate_settings, validity_of
from gateway.config.values import Address, is_loopback

_SOON = 30  # days before its end within which a certificate should be renewed
_WILD = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound


def advice(config: Config, now: datetime) -> list[str]:
    """Return what an operator should change soon, one line each: certificates that end, and access that is wide."""
    lines = [*_of_dates(config, now)]
    lines += [
        f'listeners["{listener.name}"].tls_policy: "legacy" accepts versions of TLS that are insecure; set "compatible"'
        ' or "modern" once no client needs them'
        for listener in config.listeners
        if listener.tls_policy == "legacy"
    ]
    lines += [*_of_rules(config), *_of_backends(config), *_of_socket(config), *_of_chains(config)]
    admin = config.admin
    if admin.anonymous_metrics and not is_loopback(admin.bind):
        lines.append(
            f"admin.anonymous_metrics: everybody who can reach {admin.bind} can read the metrics; give a token_file, or"
            " have a firewall keep strangers away"
        )
    return lines


def _of_dates(config: Config, now: datetime) -> Iterator[str]:
    """Yield a line for each file with a certificate that is not valid, or that ends soon."""
    own = {identity.own_file for identity in config.identities}
    for file, setting in certificate_settings(config).items():
        begins, ends = validity_of(file)
        if now < ends and (ends - now).days < _SOON:
            yield f"{setting}: {file} ends in {(ends - now).days} days, on {ends:%Y-%m-%d}; renew it"
        elif file in own:
            continue  # ``warnings`` has it
        elif begins > now:
            yield (
                f"{setting}: {file} is not valid before {begins:%Y-%m-%d %H:%M} UTC; check this machine's clock, or"
                " replace the file"
            )
        elif ends < now:
            yield f"{setting}: {file} has a certificate that ended on {ends:%Y-%m-%d}; renew it, or take it out"


def _of_rules(config: Config) -> Iterator[str]:
    for identity in config.identities:
        for name in identity.match.subject_cn:
            if name.lower().startswith("cn="):
                alone = re.split(r"[,+/]", name[3:])[0]
                yield (
                    f'identities["{identity.name}"].match.subject_cn: "{name}" begins with "CN=", which no common name'
                    f' does as a rule; write the common name alone: "{alone}"'
                )


def _of_backends(config: Config) -> Iterator[str]:
    if all(backend.role == "ro" for backend in config.backends):
        yield (
            'backends: every role is "ro", so that no client can create, change or destroy anything; set role = "rw"'
            " for a key manager that takes changes"
        )
    own = {f'listeners["{listener.name}"]': listener.bind for listener in config.listeners}
    own["[admin]"] = config.admin.bind
    for backend in config.backends:
        for place, bind in own.items():
            if bind.port == backend.address.port and _is_reached_at(bind, backend.address):
                yield (
                    f'backends["{backend.name}"].address: {backend.address} is the address of {place}: the gateway'
                    " would be its own key manager; give the key manager's address"
                )


def _is_reached_at(bind: Address, address: Address) -> bool:
    """Return True if a connection to ``address`` may come out at ``bind``, but for the ports."""
    if bind.host == address.host:
        return True
    by_name = "localhost" in {bind.host, address.host}
    return is_loopback(address) and (bind.host in _WILD or (by_name and is_loopback(bind)))


def _of_socket(config: Config) -> Iterator[str]:
    """Yield a line if the control socket has no directory: systemd may make it, so that this is no mistake."""
    path = config.admin.socket
    if path is not None and not path.parent.is_dir():
        yield (
            f"admin.socket: there is no directory {path.parent}; make it, unless systemd does so at the start"
            " (RuntimeDirectory=)"
        )


def _of_chains(config: Config) -> Iterator[str]:
    """Yield a line for each file of CAs that verifies nothing, and each certificate of the wrong purpose or chain."""
    cas = [(f'listeners["{it.name}"].client_ca', it.client_ca, it.tls_policy) for it in config.listeners]
    cas += [(f'backends["{it.name}"].ca', it.ca, it.tls_policy) for it in config.backends if it.ca is not None]
    for setting, file, policy in cas:
        if fault := ca_fault(certificates(file), takes_weak_keys=policy == "legacy"):
            yield f"{setting}: {file} {fault}"
    for listener in config.listeners:
        if not _is_for(listener.certificate, ExtendedKeyUsageOID.SERVER_AUTH):
            yield (
                f'listeners["{listener.name}"].certificate: {listener.certificate} is not for TLS servers (extended key'
                " usage without serverAuth): clients may refuse it; have it issued for servers"
            )
    for identity in config.identities:
        own = identity.certificate
        if own is not None and not _is_for(own, ExtendedKeyUsageOID.CLIENT_AUTH):
            yield (
                f'identities["{identity.name}"].certificate: {own} is not for TLS clients (extended key usage without'
                " clientAuth): key managers may refuse it; have it issued for clients"
            )
    shown = {f'listeners["{it.name}"].certificate': it.certificate for it in config.listeners}
    shown |= {f'identities["{it.name}"].certificate': it.certificate for it in config.identities if it.certificate}
    for setting, file in shown.items():
        if fault := chain_fault(certificates(file)):
            yield f"{setting}: {file} {fault}"


def _is_for(file: Path, purpose: x509.ObjectIdentifier) -> bool:
    """Return True unless the first certificate in a file names its purposes without this one."""
    try:
        usage = certificates(file)[0].extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return True
    return purpose in usage or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage
