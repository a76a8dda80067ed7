"""Key managers that answer asynchronously, requests that poll them, and a gateway that marks their values."""

from gateway.dispatcher import Answer, ReplicationPolicy
from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.messages import Request
from gateway.kmip.spec import Operation, ResultStatus, Tag
from gateway.upstream.affinity import Affinity
from gateway.upstream.balancer import Balancer
from gateway.upstream.marks import Marks
from gateway.upstream.versions import CommonVersions
from tests.kit.fake_backends import (
    Connection,
    FakeKeyManager,
    ask,
    name_in,
)
from tests.kit.replicas import (
    FOUND,
    MISSING,
)


def begins_and_polls(connection: Connection, request: Request) -> None:
    """Answer a request with an asynchronous correlation value, and a Poll with success if it shows that value."""
    value = f"later at {connection.key_manager.name}".encode()
    item = request.items[0]
    connection.execute(request)
    if item.operation == Operation.POLL:
        known = value in request.frame and b"kgw" not in request.frame
        outcome, reason = FOUND if known else MISSING
        result = compose.Result(outcome, Operation.CREATE, item.unique_batch_item_id, reason)
    elif name_in(request):
        result = compose.Result(
            ResultStatus.OPERATION_PENDING, item.operation, None, asynchronous_correlation_value=value
        )
    else:
        result = compose.Result(ResultStatus.SUCCESS, item.operation)
    connection.say(compose.encode_response(request.version, [result], now=0))


def asynchronous(*names: str) -> list[FakeKeyManager]:
    key_managers = [FakeKeyManager(name) for name in names]
    for one in key_managers:
        one.behaviour = begins_and_polls
    return key_managers


def begin(name: str, *header: bytes) -> Request:
    return ask(name, Operation.CREATE, header=(*header, ttlv.boolean(Tag.ASYNCHRONOUS_INDICATOR, value=True)))


def poll(value: bytes, *more: bytes) -> Request:
    asks = [
        compose.Ask(Operation.POLL, ttlv.octets(Tag.ASYNCHRONOUS_CORRELATION_VALUE, one), bytes([index]))
        for index, one in enumerate((value, *more))
    ]
    return decode_request(compose.encode_request((1, 4), asks))


def with_marks(balancer: Balancer) -> ReplicationPolicy:
    return ReplicationPolicy(Affinity(10.0), Marks([bytes(32)]), CommonVersions(balancer))


def value_in(answer: Answer) -> bytes:
    return decode_response(answer.frame).items[0].asynchronous_correlation_value or b""
