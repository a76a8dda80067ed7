"""Advice: settings and files with which the gateway runs, and which an operator should look at; for ``check``."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from gateway.config.files import certificates
from gateway.config.model import Config
from gateway.config.summary import certificate_files, validity_of
from gateway.config.values import is_loopback

_SOON = 30  # days before its end within which a certificate should be renewed
_WILD = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound


def advice(config: Config, now: datetime) -> list[str]:
    """Return what an operator should change soon, one line each: certificates that end, and access that is wide."""
    lines = []
    own = {identity.own_file for identity in config.identities}
    for file in certificate_files(config):
        begins, ends = validity_of(file)
        if now < ends and (ends - now).days < _SOON:
            lines.append(f"{file}: ends in {(ends - now).days} days, on {ends:%Y-%m-%d}; renew it")
        elif file in own:
            continue  # ``warnings`` has it
        elif begins > now:
            lines.append(f"{file}: is not valid before {begins:%Y-%m-%d %H:%M} UTC; check this machine's clock")
        elif ends < now:
            lines.append(f"{file}: has a certificate that ended on {ends:%Y-%m-%d}; renew it")
    lines += [
        f'listeners["{listener.name}"].tls_policy: "legacy" accepts versions of TLS that are insecure; set "compatible"'
        ' or "modern" once no client needs them'
        for listener in config.listeners
        if listener.tls_policy == "legacy"
    ]
    lines += [*_of_rules(config), *_of_backends(config), *_of_chains(config)]
    admin = config.admin
    if admin.anonymous_metrics and not is_loopback(admin.bind):
        lines.append(
            f"admin.anonymous_metrics: everybody who can reach {admin.bind} can read the metrics; give a token_file, or"
            " have a firewall keep strangers away"
        )
    return lines


def _of_rules(config: Config) -> Iterator[str]:
    for identity in config.identities:
        for name in identity.match.subject_cn:
            if name.lower().startswith("cn="):
                yield (
                    f'identities["{identity.name}"].match.subject_cn: "{name}" begins with "CN=", which no common name'
                    f' does as a rule; write "{name[3:]}"'
                )


def _of_backends(config: Config) -> Iterator[str]:
    if all(backend.role == "ro" for backend in config.backends):
        yield (
            'backends: every role is "ro", so that no client can create, change or destroy anything; set role = "rw"'
            " for a key manager that takes changes"
        )
    for backend in config.backends:
        for listener in config.listeners:
            host, port = backend.address.host, backend.address.port
            is_own = host == listener.bind.host or (listener.bind.host in _WILD and is_loopback(backend.address))
            if is_own and port == listener.bind.port:
                yield (
                    f'backends["{backend.name}"].address: {backend.address} is the address of listeners["'
                    f"{listener.name}\"]: the gateway would be its own key manager; give the key manager's address"
                )


def _of_chains(config: Config) -> Iterator[str]:
    """Yield a line for each file of CAs without a root, and for each certificate of the wrong purpose."""
    cas = {f'listeners["{listener.name}"].client_ca': listener.client_ca for listener in config.listeners}
    cas |= {f'backends["{each.name}"].ca': each.ca for each in config.backends if each.ca is not None}
    for setting, file in cas.items():
        if not any(each.subject == each.issuer for each in certificates(file)):
            yield (
                f"{setting}: {file} has no root CA (a certificate that its own subject has issued), so that no"
                " certificate can be verified with it; add the root"
            )
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


def _is_for(file: Path, purpose: x509.ObjectIdentifier) -> bool:
    """Return True unless the first certificate in a file names its purposes without this one."""
    try:
        usage = certificates(file)[0].extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return True
    return purpose in usage or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage
