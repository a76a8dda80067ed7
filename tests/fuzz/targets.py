"""Fuzz targets: functions that must not raise for any bytes.

Each target ignores the errors that its part promises for broken input (usually ProtocolError), and checks what must
hold for all input. ``tests.fuzz`` feeds them coverage-guided mutations, ``test_corpus`` the inputs that are kept.
"""

from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from gateway import policy
from gateway.certificate_names import names_of
from gateway.config import PolicyConfig
from gateway.errors import ProtocolError
from gateway.identity import Identity, Principal
from gateway.kmip import binding, compose
from gateway.kmip.answers import is_answer_to
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.framing import FrameReader
from gateway.kmip.messages import Request, Response
from gateway.kmip.spec import Operation, Tag
from gateway.permissions import UNRESTRICTED, Permissions, refusal_frame
from gateway.policy import Refusal
from gateway.upstream.marks import Marks
from gateway.upstream.versions import CommonVersions

MAX_SIZE: Final = 1 << 20
_PERMISSIONS: Final = [
    UNRESTRICTED,
    Permissions(PolicyConfig(allow=("read", "create"), object_types=("Symmetric Key",), max_batch_items=3)),
]
_PRINCIPAL: Final = Principal(Identity("app", shared=False), "CN=CA", "CN=app", 0, float("inf"))
_BACKENDS: Final = frozenset({"kms-1", "kms-2"})
_MARKS: Final = Marks([b"x" * 32, b"y" * 32])
_PROXY_MODULE: Final = "gateway.front.proxy_protocol"
_PROXY: Final[Any] = import_module(_PROXY_MODULE) if find_spec(_PROXY_MODULE) else None


def framing(data: bytes) -> None:
    """Cut a stream into messages: the result does not depend on the chunks, and no byte is lost."""
    for tag in (Tag.REQUEST_MESSAGE, Tag.RESPONSE_MESSAGE):
        whole, broken = _frames(FrameReader(tag, MAX_SIZE), [data])
        third = len(data) // 3
        cut, broken_too = _frames(
            FrameReader(tag, MAX_SIZE), [data[:third], data[third : third + 1], data[third + 1 :]]
        )
        assert (cut, broken_too) == (whole, broken)
        assert data.startswith(b"".join(whole))


def _frames(reader: FrameReader, chunks: list[bytes]) -> tuple[list[bytes], bool]:
    frames = []
    try:
        for chunk in chunks:
            frame = reader.feed(chunk)
            while frame is not None:
                frames.append(frame)
                frame = reader.next_frame()
    except ProtocolError:
        return frames, True
    return frames, False


def request(data: bytes) -> None:
    """Decode a request as a conversation does, read it by the tables of ``policy``, and answer it."""
    try:
        found = decode_request(data)
    except ProtocolError as error:
        decode_response(policy.refuse(Refusal.INVALID_MESSAGE, str(error), None, version=error.version))
        return
    _read_by_tables(found)
    assert found.frame == data
    decode_response(policy.refuse(Refusal.DEADLINE, "too late", found))
    CommonVersions(_NoBalancer()).answer(found, "app")  # type: ignore[arg-type]  # no other attribute is used


class _NoBalancer:
    """A balancer without key managers."""

    backends = ()


def _read_by_tables(found: Request) -> None:
    repr(found)
    for permissions in _PERMISSIONS:
        if denials := permissions.denials(found):
            decode_response(refusal_frame(found, denials))
    policy.effect_of(found)
    policy.may_be_given_values(found)
    policy.makes_only_new(found)
    policy.names_only(frozenset({b"1"}), found)
    for item in found.items:
        with suppress(ProtocolError):
            assert isinstance(item.unique_identifiers, list)


_ASKED: Final = [
    decode_request(compose.encode_request((1, 4), [compose.Ask(operation, b"")]))
    for operation in (Operation.GET, Operation.LOCATE, Operation.POLL, Operation.ENCRYPT, Operation.DESTROY)
]


def response(data: bytes) -> None:
    """Decode a response as the dispatcher does, and compare it with requests that it may answer."""
    try:
        found = decode_response(data)
    except ProtocolError:
        return
    repr(found)
    assert found.frame == data
    for item in found.items:
        assert item.message is None or isinstance(item.message, str)
        assert item.status is not None
        with suppress(ProtocolError):
            assert item.located_items is None or item.located_items >= 0
    policy.is_missing_something(found)
    policy.is_server_error(found)
    policy.has_failed(found)
    policy.found_by(found)
    policy.tells_of_a_change(found)
    for asked in _ASKED:
        if is_answer_to(found, asked):
            policy.destroyed(asked, found)
            policy.has_changed_nothing(asked, found)
            _put(found, asked)


def marks(data: bytes) -> None:
    """Take marks off any request, and put marks on the values of any response."""
    with suppress(ProtocolError):
        found = decode_request(data)
        taken = _MARKS.take(found, _PRINCIPAL, _BACKENDS, leave_room=policy.may_be_given_values(found))
        assert taken.refusal is None or not taken.backend
        decode_request(taken.request.frame)
    with suppress(ProtocolError):
        _put(decode_response(data), _ASKED[3])


def _put(found: Response, asked: Request) -> None:
    values = binding.given(found, asked)
    if values:
        decode_response(_MARKS.put(found, values, _PRINCIPAL, "kms-1"))


def proxy_protocol(data: bytes) -> None:
    """Parse a PROXY header: with fewer bytes, the result is the same, or more bytes are needed."""

    def parse(part: bytes) -> Any:
        try:
            return _PROXY.parse(part)
        except _PROXY.ProxyHeaderError:
            return None

    whole = parse(data)
    if isinstance(whole, int):
        assert whole > len(data)
    elif whole is not None:
        assert whole.size <= len(data)
        assert parse(data[: whole.size]) == whole
        wanted = parse(data[: whole.size // 2])
        assert isinstance(wanted, int)
        assert wanted <= whole.size


def certificate_names(data: bytes) -> None:
    """Find the names in a certificate; they are parts of it."""
    with suppress(ValueError):
        names = names_of(data)
        assert all(part is None or part in data for part in names[:3])


#: By name, which is also that of the target's corpus.
TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    target.__name__: target
    for target in (framing, request, response, marks, certificate_names, *([proxy_protocol] if _PROXY else []))
}
