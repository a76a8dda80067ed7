"""A whole gateway in this process to be counted, with its key managers and its client in processes of their own.

All use real mutual TLS on the loopback interface. The gateway is that of ``kmip-gateway run``, with all features.
Only its periodic work (health checks, maintenance of the pools) is as rare as possible: it would be counted as well,
and the more the slower the machine.
"""

import atexit
import ctypes
import gc
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from enum import Enum
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import trio
from OpenSSL import SSL

from gateway import log, loop_lag, metrics, tls_worker, watchdog, wiring
from gateway.audit import writer
from gateway.config import Config, load
from gateway.core import Core, open_sockets
from gateway.front import reachability, relay
from gateway.front.supervision import send_worker, socket_pair
from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.framing import FrameReader
from gateway.kmip.messages import Request
from gateway.kmip.spec import ObjectType, Operation, ResultStatus, Tag
from gateway.tls_worker import TlsWorker
from gateway.upstream import maintenance
from gateway.wiring import server_context
from tests.kit.processes import Certificates, GatewaySettings, Identity, write_config

UNIQUE_IDENTIFIER = "0ce22a4c-93b5-46b1-9e0d-8b3ec1e8ab5f"  # of the object that all requests are about
_MAX_SIZE = 16 << 20
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_NEVER = 3600.0  # s
#: valgrind makes everything some fifty times slower: no deadline may end what is only slow.
_LISTENER = "handshake_timeout = 3600.0"
_EXTRA = """
[deadlines]
request = 55.0
connect = 50.0
[health]
interval = 3600.0
timeout = 3600.0
[failover]
when_none = "answer"
[log]
level = "error"
[pool]
min_idle = {pool_size}
idle_timeout = 3600.0
validate_after = 3600.0
"""
#: Limits that no request of a case reaches; each of them is looked at for every request, or every connection.
_LIMITS = """
[per_address]
max_clients = 1000
max_half_open = 1000
handshakes_per_second = 100000.0
handshake_burst = 100000.0
"""
_LIMITS_OF_PRINCIPALS = """
max_clients = 1000
max_requests = 10
requests_per_second = 100000.0
request_burst = 100000.0
"""


class Size(NamedTuple):
    """Sizes on which the cost of a request may depend: ``message`` in bytes, all others are numbers.

    Each idle client has an address and a certificate of its own. ``limits`` is 1 if addresses and principals have
    limits and rates of their own in the configuration.
    """

    message: int = 0
    items: int = 1
    backends: int = 2
    identities: int = 1
    idle_clients: int = 0
    pool: int = 1
    limits: int = 0


def request_frame(size: Size) -> bytes:
    """Return a Get, or a batch of Gets, of at least ``size.message`` bytes."""
    payload = ttlv.text(Tag.UNIQUE_IDENTIFIER, UNIQUE_IDENTIFIER)
    if size.message:
        payload += ttlv.octets(Tag.DATA, bytes(size.message))
    numbered = size.items > 1
    return compose.encode_request(
        (1, 2),
        [
            compose.Ask(Operation.GET, payload, index.to_bytes(2, "big") if numbered else None)
            for index in range(size.items)
        ],
    )


def response_frame(request: Request, size: Size) -> bytes:
    """Return the answer to a request: some 320 bytes, or as many as the request."""
    payload = (
        ttlv.enumeration(Tag.OBJECT_TYPE, ObjectType.SYMMETRIC_KEY)
        + ttlv.text(Tag.UNIQUE_IDENTIFIER, UNIQUE_IDENTIFIER)
        + ttlv.octets(Tag.KEY_MATERIAL, bytes(max(136, size.message)))
    )
    results = [
        compose.Result(ResultStatus.SUCCESS, item.operation, item.unique_batch_item_id, payload=payload)
        for item in request.items
    ]
    return compose.encode_response(request.version, results, now=0)


@cache
def certificates() -> Certificates:
    """Return the certificates of all cases; the process that calls this first removes them at its exit."""
    directory = tempfile.TemporaryDirectory(prefix="kmip-gateway-benchmark-")
    atexit.register(directory.cleanup)  # not called in forked processes
    made = Certificates(Path(directory.name))
    made.client("alice")
    made.credential("gateway")
    return made


class Role(Enum):
    """The part of the gateway that this process is: all of it, or one of a core and a TLS worker."""

    ALL = 0
    CORE = 1
    WORKER = 2


def serve_kept(count: int, size: Size, role: Role = Role.ALL) -> None:
    """Run a gateway while a client sends ``count`` requests over one kept connection."""
    _serve(count, size, role, fresh=False)


def serve_fresh(count: int, size: Size, role: Role = Role.ALL) -> None:
    """Run a gateway while a client sends ``count`` requests, each over a new connection."""
    _serve(count, size, role, fresh=True)


def serve_audited(count: int, size: Size) -> None:
    """Run a gateway with an audit trail, for the rest as ``serve_kept``.

    valgrind makes everything some fifty times slower, but no clock: lines are collected for as many times longer, so
    that they are written in as large batches as under load.
    """
    setattr(writer, "_COLLECT", 1.0)  # noqa: B010 - it is final everywhere else
    _serve(count, size, Role.ALL, fresh=False, extra='[audit]\nto = "file"\n')


def _serve(count: int, size: Size, role: Role, *, fresh: bool, extra: str = "") -> None:
    log.configure("error", "text")
    setattr(maintenance, "_ROUND", _NEVER)  # noqa: B010 - it is final everywhere else
    setattr(tls_worker, "_REPORT_EVERY", _NEVER)  # noqa: B010
    setattr(reachability, "_INTERVAL", _NEVER)  # noqa: B010
    setattr(metrics, "_FLUSH_EVERY", _NEVER)  # noqa: B010
    setattr(watchdog, "_LOOK_EVERY", _NEVER)  # noqa: B010
    setattr(wiring, "_JUDGE_EVERY", _NEVER)  # noqa: B010
    setattr(loop_lag, "INTERVAL", _NEVER)  # noqa: B010
    setattr(relay, "_LOOK_FOR_LEFT", _NEVER)  # noqa: B010
    identities = [Identity("everyone")] + [
        Identity(f"unused-{index}", f'{{ san_dns = "unused-{index}" }}') for index in range(1, size.identities)
    ]
    listening = [socket.create_server(("127.0.0.1", 0), backlog=1024) for _ in range(size.backends)]
    _fork(lambda: _be_key_managers(listening, size))
    ports = [sock.getsockname()[1] for sock in listening]
    backend = f"max_sessions = {size.pool * size.identities + 1}"
    extra += _EXTRA.format(pool_size=size.pool) + (_LIMITS if size.limits else "")
    of_principals = _LIMITS_OF_PRINCIPALS if size.limits else ""
    settings = GatewaySettings(
        ports, identities, listener=_LISTENER, backend=backend, identity=of_principals, extra=extra
    )
    config = load(write_config(certificates(), settings, 0, 0))
    read_port, write_port = os.pipe()
    read_end, write_end = os.pipe()
    _fork(lambda: _be_client(read_port, write_end, count, size, fresh=fresh))
    os.close(write_end)
    gc.collect()
    gc.freeze()  # as `kmip-gateway run` does
    if role is Role.ALL:
        trio.run(_run, Core(config), size, write_port, read_end)
    else:
        _serve_apart(config, role, partial(_run, size=size, write_port=write_port, read_end=read_end))


def _serve_apart(config: Config, role: Role, run: Callable[[Core], Awaitable[None]]) -> None:
    """Run a core and a TLS worker: one of them in this process, the other in a forked process."""
    to_core, of_core = socket_pair()
    of_worker, to_worker = socket.socketpair()
    contexts = {listener.name: server_context(listener) for listener in config.listeners}
    with open_sockets(config, {}) as opened:

        def be_core() -> None:
            of_worker.close()
            send_worker(to_core, 0, 0, to_worker)
            to_worker.close()
            trio.run(run, Core(config, opened._replace(supervisor=of_core)))

        def be_worker() -> None:
            for sock in (to_core, of_core, to_worker):
                sock.close()
            trio.run(TlsWorker(config, contexts, of_worker, workers=1).run, opened.sockets)

        here, elsewhere = (be_core, be_worker) if role is Role.CORE else (be_worker, be_core)
        _fork(elsewhere)
        here()


async def _run(core: Core, size: Size, write_port: int, read_end: int) -> None:
    async with trio.open_nursery() as nursery:
        bound = await nursery.start(core.run)
        while not _is_full(core, size):  # noqa: ASYNC110 - a gauge can't be waited for
            await trio.sleep(1)
        os.write(write_port, bound.listeners[0].port.to_bytes(2, "big"))
        await trio.lowlevel.wait_readable(read_end)
        if not os.read(read_end, 1):
            raise RuntimeError("the client has not been served")
        core.metrics.flush()  # a part of each request's cost, which comes in batches under load
        nursery.cancel_scope.cancel()


def _is_full(core: Core, size: Size) -> bool:
    """Return True if the pools have opened all the sessions that they keep. Reads one metric: all would be counted."""
    wanted = size.pool * size.identities
    samples = [sample for family in core.metrics.sessions.collect() for sample in family.samples]
    full = [sample for sample in samples if sample.labels["state"] == "idle" and sample.value == wanted]
    return len(full) == size.backends


def _fork(work: Callable[[], None]) -> None:
    """Run a function in a forked process, which is killed if this process ends."""
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - a child must not go on as its parent
            print(f"benchmark: {error!r}", file=sys.stderr)
        finally:
            os._exit(0)


def _be_client(port: int, done: int, count: int, size: Size, *, fresh: bool) -> None:
    """Send the requests, check the last answer, and write a byte to ``done``; an end without this byte is a failure."""
    address = ("127.0.0.1", int.from_bytes(os.read(port, 2), "big"))
    frame = request_frame(size)
    idle = [_idle_client(address, number) for number in range(size.idle_clients)]
    context = _context(*certificates().client("alice"))
    connection = _connect(address, context)
    for _ in range(count):
        if fresh:
            connection.close()
            connection = _connect(address, context)
        connection.sendall(frame)
        answer = _read_message(connection, FrameReader(Tag.RESPONSE_MESSAGE, _MAX_SIZE))
    is_served = decode_response(answer, max_items=size.items).items[0].status == ResultStatus.SUCCESS
    if is_served and all(_is_open(client) for client in idle):
        os.write(done, b"!")


def _idle_client(address: tuple[str, int], number: int) -> SSL.Connection:
    """Connect a client that sends nothing, from an address and with a certificate of its own."""
    source = f"127.0.{1 + number // 250}.{1 + number % 250}"
    return _connect(address, _context(*certificates().client(f"idle-{number}")), source)


def _is_open(connection: SSL.Connection) -> bool:
    """Return True unless the gateway has closed the connection; tickets that it sent are read."""
    connection.setblocking(False)
    try:
        connection.recv(1)
    except SSL.WantReadError:
        return True
    except SSL.Error:
        return False
    return False


def _context(certificate: Path, private_key: Path) -> SSL.Context:
    """Return the context of a peer that verifies nothing; its own cost is not counted."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.use_certificate_chain_file(str(certificate))
    context.use_privatekey_file(str(private_key))
    return context


def _connect(address: tuple[str, int], context: SSL.Context, source: str = "") -> SSL.Connection:
    connection = SSL.Connection(context, socket.create_connection(address, source_address=(source, 0)))
    connection.set_connect_state()
    connection.do_handshake()
    return connection


def _be_key_managers(listening: Sequence[socket.socket], size: Size) -> None:
    """Answer on all listening sockets, until killed with the gateway."""
    context = _context(*certificates().pair("kms"))
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_arguments: True)
    for sock in listening[1:]:
        _in_background(_accept, sock, context, size)
    _accept(listening[0], context, size)


def _accept(listening: socket.socket, context: SSL.Context, size: Size) -> None:
    answers: dict[bytes, bytes] = {}
    while True:
        connected, _address = listening.accept()
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _in_background(_answer, SSL.Connection(context, connected), answers, size)


def _answer(connection: SSL.Connection, answers: dict[bytes, bytes], size: Size) -> None:
    connection.set_accept_state()
    reader = FrameReader(Tag.REQUEST_MESSAGE, _MAX_SIZE)
    with suppress(SSL.Error):
        while True:
            frame = _read_message(connection, reader)
            if frame not in answers:
                request = decode_request(frame, max_items=100_000)
                is_get = request.items[0].operation == Operation.GET
                answers[frame] = response_frame(request, size if is_get else Size())  # others validate a session
            connection.sendall(answers[frame])


def _in_background(work: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()


def _read_message(connection: SSL.Connection, reader: FrameReader) -> bytes:
    while True:
        frame = reader.feed(connection.recv(16384))
        if frame is not None:
            return frame
