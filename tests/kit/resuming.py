"""Clients of the standard library's ssl, which resume their TLS sessions."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.kmip.decode import decode_response
from gateway.kmip.framing import FrameReader
from gateway.kmip.messages import Response
from gateway.kmip.spec import Tag
from tests.kit.processes import Gateway


def context_of(gateway: Gateway, name: str, version: str) -> ssl.SSLContext:
    """Return the context of a client, for one version of TLS."""
    context = ssl.create_default_context(cafile=str(gateway.certificates.path("gateway_ca.pem")))
    context.load_cert_chain(*gateway.certificates.client(name))
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version.replace(".", "_")]
    return context


@contextmanager
def session(
    gateway: Gateway, context: ssl.SSLContext, resume: ssl.SSLSession | None = None, *, nodelay: bool = False
) -> Iterator[ssl.SSLSocket]:
    """Connect for the length of a block, and resume a session if one is given."""
    with socket.create_connection((gateway.address.host, gateway.address.port), timeout=10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, nodelay)
        with context.wrap_socket(sock, server_hostname="localhost", session=resume) as talking:
            yield talking


def read_response(talking: ssl.SSLSocket) -> Response:
    """Return the next response."""
    reader = FrameReader(Tag.RESPONSE_MESSAGE, 1 << 20)
    while True:
        data = talking.recv(16384)
        assert data, "closed without an answer"
        frame = reader.feed(data)
        if frame is not None:
            return decode_response(frame)
