"""Hostile clients for `make attacks`, each a process of its own: ``python -m tests.benchmarks.attackers NAME``.

An Attack comes as JSON over standard input; when its time is over, the process prints its counts. All connections
go to loopback. They come from 127.0.0.2 and following, so that limits per source address hit the attacker only.
"""

import ctypes
import ctypes.util
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

from kmip_lab.compare import wire
from kmip_lab.compare.load import LoadJob
from OpenSSL import SSL

from gateway.kmip import compose, ttlv
from gateway.kmip.spec import Operation, Tag

_RECORD_HEAD: Final = b"\x16\x03\x01"
_PATIENCE: Final = 5.0  # s for one step
_PAUSE: Final = 0.01  # s after a connection was refused
_EMPTY_FIELD: Final = struct.pack(">II", 0x540001 << 8 | 8, 0)
_FIELDS: Final = 130_000  # empty fields, nearly 1 MiB of them


@dataclass(frozen=True)
class Attack:
    """Parameters of an attack on ``port`` of 127.0.0.1, from so many ``sources`` (addresses)."""

    port: int
    admin_port: int
    certificate: str
    private_key: str
    ca: str
    seconds: float
    number: int = 1
    sources: int = 1


Done = dict[str, float | str]


def _connected(attack: Attack, port: int, index: int = 0) -> socket.socket:
    sock = socket.socket()
    try:
        sock.bind((f"127.0.0.{2 + index % attack.sources}", 0))
        sock.settimeout(_PATIENCE)
        sock.connect(("127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    return sock


def _is_open(sock: socket.socket) -> bool:
    try:
        while sock.recv(65536, socket.MSG_DONTWAIT):
            pass
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


class _Tls:
    """A blocking TLS session, with a bound on each step."""

    def __init__(self, attack: Attack, context: SSL.Context, index: int = 0) -> None:
        self._sock = _connected(attack, attack.port, index)
        self._sock.settimeout(None)
        patience = struct.pack("ll", int(_PATIENCE), 0)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._sock.setsockopt(socket.SOL_SOCKET, option, patience)
        self.connection = SSL.Connection(context, self._sock)
        self.connection.set_connect_state()
        try:
            self.connection.do_handshake()
        except BaseException:
            self.close()
            raise

    def read(self) -> int:
        """Read one message; returns its size. Raises SSL.Error or OSError."""
        data = self.connection.recv(16384)
        while len(data) < wire.size(data):
            data += self.connection.recv(16384)
        return len(data)

    def is_open(self) -> bool:
        """Return True if the server has not closed; received bytes (tickets, an alert) are dropped."""
        return _is_open(self._sock)

    def close(self) -> None:
        self._sock.close()


def _context(attack: Attack) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.load_verify_locations(attack.ca.encode())
    context.use_certificate_chain_file(attack.certificate.encode())
    context.use_privatekey_file(attack.private_key.encode())
    return context


def _in_threads(attack: Attack, work: Callable[[int, float, Callable[[int], None]], None]) -> int:
    """Repeat the work in ``number`` threads until the end of the attack; return the sum of their counts.

    The work gets its index, the time of its end, and a function that adds to its count.
    """
    until = time.monotonic() + attack.seconds
    counts = [0] * attack.number

    def run(index: int) -> None:
        def count(number: int) -> None:
            counts[index] += number

        while time.monotonic() < until:
            with suppress(OSError, SSL.Error):
                work(index, until, count)
            time.sleep(_PAUSE)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(attack.number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


# B1 -------------------------------------------------------------------------------------------------------------------


_BURST: Final = 150_000  # KeyUpdates, 4 MB, which a server takes longer to read than a client to make


class _KeyUpdates:
    """A TLS 1.3 session over memory that makes KeyUpdates in advance, by the machine's libssl (pyOpenSSL can't)."""

    def __init__(self, libssl: ctypes.CDLL, context: int, sock: socket.socket) -> None:
        self._libssl = libssl
        self._sock = sock
        self._session = libssl.SSL_new(context)
        self._incoming, self._outgoing = libssl.BIO_new(libssl.BIO_s_mem()), libssl.BIO_new(libssl.BIO_s_mem())
        libssl.SSL_set_bio(self._session, self._incoming, self._outgoing)
        while libssl.SSL_connect(self._session) != 1:
            sock.sendall(self._written())
            data = sock.recv(16384)
            if not data:
                raise ConnectionResetError
            libssl.BIO_write(self._incoming, data, len(data))
        sock.sendall(self._written())

    def _written(self) -> bytes:
        parts = []
        buffer = ctypes.create_string_buffer(1 << 20)
        while (size := self._libssl.BIO_read(self._outgoing, buffer, len(buffer))) > 0:
            parts.append(buffer.raw[:size])
        return b"".join(parts)

    def burst(self, until: float) -> bytes:
        """Return KeyUpdates: _BURST of them, or as many as can be made until a time."""
        for made in range(_BURST):
            self._libssl.SSL_key_update(self._session, 0)
            self._libssl.SSL_do_handshake(self._session)
            if not made & 1023 and time.monotonic() > until:
                break
        return self._written()


def key_updates(attack: Attack) -> Done:
    """Send TLS 1.3 KeyUpdates without end, in bursts that are made before they are sent."""
    name = ctypes.util.find_library("ssl")
    if name is None:
        return {"not measured": "no libssl on this machine"}
    libssl = ctypes.CDLL(name)
    pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    for function, result, *arguments in (
        ("TLS_client_method", pointer),
        ("SSL_CTX_new", pointer, pointer),
        ("SSL_CTX_use_certificate_chain_file", number, pointer, text),
        ("SSL_CTX_use_PrivateKey_file", number, pointer, text, number),
        ("SSL_new", pointer, pointer),
        ("BIO_s_mem", pointer),
        ("BIO_new", pointer, pointer),
        ("BIO_write", number, pointer, text, number),
        ("BIO_read", number, pointer, text, number),
        ("SSL_set_bio", None, pointer, pointer, pointer),
        ("SSL_connect", number, pointer),
        ("SSL_key_update", number, pointer, number),
        ("SSL_do_handshake", number, pointer),
    ):
        getattr(libssl, function).restype = result
        getattr(libssl, function).argtypes = arguments
    context = libssl.SSL_CTX_new(libssl.TLS_client_method())
    libssl.SSL_CTX_use_certificate_chain_file(context, attack.certificate.encode())
    libssl.SSL_CTX_use_PrivateKey_file(context, attack.private_key.encode(), 1)

    def flood(index: int, until: float, count: Callable[[int], None]) -> None:
        with _connected(attack, attack.port, index) as sock:
            session = _KeyUpdates(libssl, context, sock)
            sock.settimeout(4 * _PATIENCE)
            while time.monotonic() < until:
                data = session.burst(until)
                sock.sendall(data)
                count(len(data))

    return {"bytes of KeyUpdates": _in_threads(attack, flood)}


# B2, B6 ---------------------------------------------------------------------------------------------------------------


def _encrypt(payload: bytes) -> bytes:
    return compose.encode_request((1, 2), [compose.Ask(Operation.ENCRYPT, payload)])


def empty_fields(attack: Attack) -> Done:
    """Send Encrypt requests whose payload is 1 MiB of empty fields, one after the other."""
    context, request = _context(attack), _encrypt(_EMPTY_FIELD * _FIELDS)

    def ask(index: int, until: float, count: Callable[[int], None]) -> None:
        session = _Tls(attack, context, index)
        try:
            while time.monotonic() < until:
                session.connection.sendall(request)
                session.read()
                count(1)
        finally:
            session.close()

    return {"requests answered": _in_threads(attack, ask)}


def unfinished_requests(attack: Attack) -> Done:
    """Send as many bytes of unfinished requests as the gateway takes, and reopen each connection that it closes."""
    context = _context(attack)
    request = _encrypt(ttlv.octets(Tag.DATA, bytes(1_000_000)))
    sizes = [990_000] * 9 + [65_000] * 30 + [17_000] * 20  # the gateway does not count requests below 16 KiB
    held: dict[int, _Tls] = {}
    until = time.monotonic() + attack.seconds
    opened = 0
    while time.monotonic() < until:
        for index, size in enumerate(sizes):
            if time.monotonic() > until:
                break
            if index in held and held[index].is_open():
                continue
            with suppress(OSError, SSL.Error):
                if index in held:
                    held.pop(index).close()
                session = _Tls(attack, context, index)
                held[index] = session
                session.connection.sendall(request[:size])
                opened += 1
        time.sleep(0.05)
    return {"unfinished requests begun": opened}


# B3, B4 ---------------------------------------------------------------------------------------------------------------


def tiny_records(attack: Attack) -> Done:
    """Send a ClientHello of 131,000 bytes in records of one byte each, ``number`` a second, without a certificate."""
    size = 131_000
    hello = b"\x01" + size.to_bytes(3, "big") + b"\x03\x03" + bytes(size - 2)
    data = b"".join(_RECORD_HEAD + b"\0\1" + hello[index : index + 1] for index in range(len(hello)))
    began, sent = time.monotonic(), 0
    while time.monotonic() < began + attack.seconds:
        if sent > attack.number * (time.monotonic() - began):
            time.sleep(0.002)
            continue
        sent += 1
        with suppress(OSError), _connected(attack, attack.port, sent) as sock:
            sock.sendall(data)
    return {"ClientHellos": sent}


@contextmanager
def _held(attack: Attack, start: Callable[[int], Any]) -> Iterator[list[Any]]:
    """Hold ``number`` connections, opened in turn; yield the connections that the gateway has accepted."""
    connections = []
    for index in range(attack.number):
        with suppress(OSError, SSL.Error):
            connections.append(start(index))
    print("ready", flush=True)
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()


def half_open(attack: Attack) -> Done:
    """Hold connections that have begun a handshake, and replace each connection that the gateway closes."""

    def start(index: int) -> socket.socket:
        sock = _connected(attack, attack.port, index)
        sock.sendall(_RECORD_HEAD + b"\x02\x00")
        sock.setblocking(False)
        return sock

    until = time.monotonic() + attack.seconds
    opened = 0
    with _held(attack, start) as connections:
        until = max(until, time.monotonic() + attack.seconds)
        opened += len(connections)
        while time.monotonic() < until:
            for index, sock in enumerate(connections):
                if time.monotonic() > until:
                    break
                if _is_open(sock):
                    continue
                sock.close()
                with suppress(OSError):
                    connections[index] = start(index)
                    opened += 1
            time.sleep(0.1)
    return {"half-open connections begun": opened}


def idle(attack: Attack) -> Done:
    """Hold connections that have finished the handshake and send nothing."""
    context = _context(attack)
    with _held(attack, lambda index: _Tls(attack, context, index)) as connections:
        time.sleep(attack.seconds)
        left = sum(connection.is_open() for connection in connections)
    return {"idle connections opened": len(connections), "still open at the end": left}


def over_the_limit(attack: Attack) -> Done:
    """Keep as many connections as the gateway gives to the identity, and try again without end."""
    context = _context(attack)
    held: dict[int, _Tls] = {}
    until = time.monotonic() + attack.seconds
    opened = 0
    while time.monotonic() < until:
        for index in range(attack.number):
            if index in held and held[index].is_open():
                continue
            if index in held:
                held.pop(index).close()
            with suppress(OSError, SSL.Error):
                held[index] = _Tls(attack, context, index)
                opened += 1
            if time.monotonic() > until:
                break
        time.sleep(_PAUSE)
    return {"connections opened": opened}


# B7 -------------------------------------------------------------------------------------------------------------------


def busy(attack: Attack) -> Done:
    """Get a key on ``number`` kept connections, as fast as answers come."""
    job = LoadJob(
        work="kept",
        addresses=[("127.0.0.1", attack.port)],
        certificate=attack.certificate,
        private_key=attack.private_key,
        ca=attack.ca,
        request=wire.REQUEST.hex(),
        sessions=[],
        clients=attack.number,
        seconds=attack.seconds,
    )
    command = [sys.executable, "-m", "kmip_lab.compare.load"]
    ended = subprocess.run(command, input=json.dumps(asdict(job)), capture_output=True, text=True, check=True)
    measured = json.loads(ended.stdout)
    return {"requests a second": measured["operations"] / measured["seconds"], "errors": measured["errors"]}


# B8 -------------------------------------------------------------------------------------------------------------------

_H2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # and empty SETTINGS
#: RFC 7541: GET, http, and path and authority as literals that are not indexed.
_H2_HEADERS: Final = b"\x82\x86\x04\x08/metrics\x01\x09localhost"
_STREAMS: Final = 90


def h2_resets(attack: Attack) -> Done:
    """Open HTTP/2 streams on the admin port and reset each at once."""

    def flood(index: int, until: float, count: Callable[[int], None]) -> None:
        stream = 1
        with _connected(attack, attack.admin_port, index) as sock:
            sock.sendall(_H2_PREFACE)
            while time.monotonic() < until:
                frames = []
                for _ in range(_STREAMS):
                    number = struct.pack(">I", stream)
                    frames.append(struct.pack(">I", len(_H2_HEADERS))[1:] + b"\1\5" + number + _H2_HEADERS)
                    frames.append(b"\0\0\4\3\0" + number + b"\0\0\0\x08")
                    stream += 2
                sock.sendall(b"".join(frames))
                count(_STREAMS)
                time.sleep(0.002)

    return {"streams": _in_threads(attack, flood)}


def scrapes(attack: Attack) -> Done:
    """Ask for /metrics twenty times at once on each connection, again and again."""
    request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20
    last = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

    def ask(index: int, until: float, count: Callable[[int], None]) -> None:
        with _connected(attack, attack.admin_port, index) as sock:
            sock.sendall(request + last)
            while time.monotonic() < until and (data := sock.recv(65536)):
                count(data.count(b"HTTP/1.1 200"))

    return {"scrapes answered": _in_threads(attack, ask)}


def admin_connections(attack: Attack) -> Done:
    """Hold up to 600 connections to the admin port that never finish their request."""
    held: list[socket.socket] = []
    until = time.monotonic() + attack.seconds
    opened = 0
    while time.monotonic() < until:
        try:
            held.append(_connected(attack, attack.admin_port, opened))
            held[-1].sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n")
            opened += 1
        except OSError:
            time.sleep(_PAUSE)
        if len(held) > 600:
            held.pop(0).close()
    return {"connections": opened}


ATTACKS: Final[dict[str, Callable[[Attack], Done]]] = {
    attack.__name__: attack
    for attack in (
        key_updates,
        empty_fields,
        unfinished_requests,
        tiny_records,
        half_open,
        idle,
        over_the_limit,
        busy,
        h2_resets,
        scrapes,
        admin_connections,
    )
}


def main() -> None:
    """Run the attack that the command line names."""
    attack = Attack(**json.load(sys.stdin))
    print(json.dumps(ATTACKS[sys.argv[1]](attack)))


if __name__ == "__main__":
    main()
