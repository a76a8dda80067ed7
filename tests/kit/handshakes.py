"""TLS handshakes that fail, certificates for them, and what both ends report."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import trio
from cryptography import x509
from cryptography.x509.oid import NameOID
from kmip_lab.certs import Authority
from OpenSSL import SSL

from gateway.errors import TlsError
from gateway.tls import TlsStream, client_context, server_context
from tests.kit.processes import HOSTS, Certificates
from tests.kit.streams import (
    Pair,
    streams,
)


@asynccontextmanager
async def failing(server: SSL.Context, client: SSL.Context) -> AsyncIterator[tuple[Pair, list[TlsError]]]:
    """Yield both ends of a connection after a handshake that fails, and the errors, the earliest first."""
    async with streams(server, client) as pair:
        said: list[TlsError] = []

        async def try_it(stream: TlsStream) -> None:
            try:
                await stream.handshake()
                if stream is pair.client:
                    await stream.receive_some()  # a TLS 1.3 client gets the alert only now
            except TlsError as error:
                said.append(error)

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for stream in pair:
                    nursery.start_soon(try_it, stream)
        yield pair, said


async def reasons(server: SSL.Context, client: SSL.Context) -> list[str]:
    """Return the reasons of a failed handshake: that of the end that noticed first, then that of the other end."""
    async with failing(server, client) as (_pair, said):
        return [error.reason for error in said]


def client_shows(
    certificates: Certificates, name: str, authority: Authority, *, begins: float = -1, ends: float = 1
) -> SSL.Context:
    """Return the context of a client whose certificate is valid from ``begins`` to ``ends``, in days after now."""
    pair = certificates.pair(name)
    authority.issue_client("alice", not_before=days(begins), not_after=days(ends)).write(*pair)
    return client_context(*pair, certificates.path("gateway_ca.pem"))


def server_shows(
    certificates: Certificates, name: str, authority: Authority, *, begins: float = -1, ends: float = 1
) -> SSL.Context:
    """Return the context of a server whose certificate is valid from ``begins`` to ``ends``, in days after now."""
    pair = certificates.pair(name)
    authority.issue_server("gateway", HOSTS, not_before=days(begins), not_after=days(ends)).write(*pair)
    return server_context(*pair, certificates.path("clients_ca.pem"))


def days(number: float) -> datetime:
    """Return the time ``number`` days after now."""
    return datetime.now(UTC) + timedelta(days=number)


def common_name(certificate: x509.Certificate | None) -> object:
    assert certificate is not None
    return certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
