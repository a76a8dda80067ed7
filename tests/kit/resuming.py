"""Clients of the standard library's ssl, which resume their TLS sessions, or write each record apart."""

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gateway.kmip.decode import decode_response
from gateway.kmip.framing import FrameReader
from gateway.kmip.messages import Response
from gateway.kmip.spec import Tag
from tests.kit.processes import Gateway

RECORD_HEAD = 5  # bytes; the last two are the length of the rest


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


def ask_in_single_records(gateway: Gateway, context: ssl.SSLContext, request: bytes) -> None:
    """Shake hands, send a request and read a part of the answer. Each record is written alone, without TCP_NODELAY."""
    received, written = ssl.MemoryBIO(), ssl.MemoryBIO()
    talking = context.wrap_bio(received, written, server_hostname="localhost")
    with socket.create_connection((gateway.address.host, gateway.address.port), timeout=10) as sock:

        def do(step: Callable[[], object]) -> None:
            while True:
                is_done = True
                try:
                    step()
                except ssl.SSLWantReadError:
                    is_done = False
                data = written.read()
                while data:
                    size = RECORD_HEAD + int.from_bytes(data[3:RECORD_HEAD], "big")
                    sock.sendall(data[:size])
                    data = data[size:]
                if is_done:
                    return
                received.write(sock.recv(65536))

        do(talking.do_handshake)
        do(lambda: talking.write(request))
        do(lambda: talking.read(1))


def read_response(talking: ssl.SSLSocket) -> Response:
    """Return the next response."""
    reader = FrameReader(Tag.RESPONSE_MESSAGE, 1 << 20)
    while True:
        data = talking.recv(16384)
        assert data, "closed without an answer"
        frame = reader.feed(data)
        if frame is not None:
            return decode_response(frame)
