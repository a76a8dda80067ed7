"""Taps: filters, bounds, and the lines about requests."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from gateway.dispatcher import Answer, refusal
from gateway.errors import ControlError
from gateway.front.taps import TapFilter, TappedRequest, Taps
from gateway.identity import Identity, Principal
from gateway.kmip import compose, ttlv
from gateway.kmip.compose import Ask, Result
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.messages import Request
from gateway.kmip.spec import Operation, ResultReason, ResultStatus, Tag
from gateway.policy import Refusal

PRINCIPAL = Principal(Identity("arrays", shared=False), "CN=CA", "CN=alice", 0.0, float("inf"))
SECRET = b"0123456789abcdef-secret"


def get(identifier: str = "key-1") -> Request:
    return decode_request(
        compose.encode_request((1, 4), [Ask(Operation.GET, ttlv.text(Tag.UNIQUE_IDENTIFIER, identifier))])
    )


def answer(status: ResultStatus = ResultStatus.SUCCESS) -> Answer:
    payload = ttlv.text(Tag.UNIQUE_IDENTIFIER, "key-1") + ttlv.octets(Tag.KEY_MATERIAL, SECRET)
    reason = None if status is ResultStatus.SUCCESS else ResultReason.ITEM_NOT_FOUND
    frame = compose.encode_response((1, 4), [Result(status, Operation.GET, payload=payload, reason=reason)])
    backend: Any = SimpleNamespace(name="kms-1/2")
    return Answer.of(decode_response(frame), backend)


async def tapped(
    taps: Taps,
    found: Answer | None,
    *,
    seconds: float = 0.0,
    request: Request | None = None,
) -> None:
    """Have a request answered by a dispatcher that tries two key managers."""
    asked = request or get()

    class OneAnswer:
        async def dispatch(self, *arguments: Any, now: float) -> Answer:
            observer = arguments[-1]
            began = now
            await trio.sleep(seconds)
            job: Any = SimpleNamespace(
                tries=2,
                tried=[SimpleNamespace(name="kms-2"), SimpleNamespace(name="kms-1/2")],
                times=SimpleNamespace(exchanges=[(began, trio.current_time())], exchanging=trio.current_time() - began),
            )
            observer.after_forwarding(job)
            if found is None:
                raise trio.BrokenResourceError
            return found

    dispatcher: Any = OneAnswer()
    request_of = TappedRequest("kmip", "10.1.2.3:4567", PRINCIPAL, asked)
    try:
        await taps.dispatch(dispatcher, request_of, asked, PRINCIPAL, lambda: False, None, now=trio.current_time())
    except trio.BrokenResourceError:
        assert found is None


async def lines(tap: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await tap.receive()).splitlines()]


async def test_a_line_has_the_facts_of_a_request_and_no_payload() -> None:
    taps = Taps()
    tap = taps.open(TapFilter())
    await tapped(taps, answer(), seconds=0.02)
    data = await tap.receive()
    assert SECRET not in data
    assert SECRET.hex().encode() not in data
    found = json.loads(data)
    assert found.pop("time").endswith("Z")
    assert 0.02 <= found.pop("exchange") <= found["seconds"]
    assert 0.0 <= found.pop("queue") < found.pop("seconds")
    assert found == {
        "listener": "kmip",
        "identity": "arrays",
        "client": "10.1.2.3:4567",
        "version": "1.4",
        "items": [{"operation": "Get", "ids": ["key-1"], "status": "Success"}],
        "policy": "allowed",
        "result": "success",
        "backend": "kms-1/2",
        "tries": 2,
    }


async def test_requests_that_fail_or_are_cut_off_or_refused_are_shown() -> None:
    taps = Taps()
    tap = taps.open(TapFilter(failed=True))
    await tapped(taps, answer())
    await tapped(taps, answer(ResultStatus.OPERATION_FAILED))
    await tapped(taps, refusal(Refusal.OVERLOADED, "later", get()))
    await tapped(taps, None)
    taps.refused(TappedRequest("kmip", "10.1.2.3:4567", None, get()), Refusal.NOT_AUTHENTICATED)
    taps.refused(TappedRequest("kmip", "10.1.2.3:4567", None, None), Refusal.INVALID_MESSAGE)
    found = await lines(tap)
    assert [(each["result"], each.get("refusal"), each["identity"]) for each in found] == [
        ("operation_failed", None, "arrays"),
        ("gateway_error", Refusal.OVERLOADED.value, "arrays"),
        ("cut_off", None, "arrays"),
        ("gateway_error", Refusal.NOT_AUTHENTICATED.value, "unidentified"),
        ("gateway_error", Refusal.INVALID_MESSAGE.value, "unidentified"),
    ]
    assert found[0]["items"][0]["reason"] == "ItemNotFound"


@pytest.mark.parametrize(
    ("arguments", "fits"),
    [
        ({}, True),
        ({"identity": "arrays"}, True),
        ({"identity": "tapes"}, False),
        ({"backend": "kms-1"}, True),
        ({"backend": "kms-1/2"}, True),
        ({"backend": "kms-2"}, True),
        ({"backend": "kms-1/1"}, False),
        ({"address": "10.1.2.3"}, True),
        ({"address": "10.1.0.0/16"}, True),
        ({"address": "10.2.0.0/16"}, False),
        ({"address": "::1"}, False),
        ({"operation": "get"}, True),
        ({"operation": "Get Attributes"}, False),
        ({"slower_than": 0.0}, True),
        ({"slower_than": 5}, False),
        ({"failed": True}, False),
    ],
)
async def test_filters(arguments: dict[str, Any], fits: bool) -> None:
    taps = Taps()
    tap = taps.open(TapFilter.of(arguments))
    every = taps.open(TapFilter())
    await tapped(taps, answer())
    assert len(await lines(every)) == 1
    with trio.move_on_after(0.01):
        assert len(await lines(tap)) == fits
        return
    assert not fits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"adress": "10.1.2.3"}, "a tap has no filter adress; there are identity, backend, address"),
        ({"operation": "Fetch"}, "no operation is named 'Fetch'; there are "),
        ({"operation": "Gett"}, "no operation is named 'Gett'; did you mean Get"),
        ({"operation": 3}, "operation is 3; give a text"),
        ({"failed": "yes"}, "failed is 'yes'; give true or false"),
        ({"slower_than": -1}, "slower_than is -1; give seconds, 0 or more"),
        ({"slower_than": True}, "slower_than is True; give seconds, 0 or more"),
    ],
)
def test_wrong_filters_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ControlError) as raised:
        TapFilter.of(arguments)
    assert str(raised.value).startswith(message)


async def test_a_slow_reader_loses_lines_and_is_told_how_many() -> None:
    taps = Taps()
    tap = taps.open(TapFilter())
    for _ in range(2005):
        await tapped(taps, answer())
    found = await lines(tap)
    assert len(found) == 2001
    assert found[-1] == {"lost": 5}
    await tapped(taps, answer())
    assert [each.get("lost") for each in await lines(tap)] == [None]


async def test_long_lines_are_bounded_by_their_bytes() -> None:
    taps = Taps()
    tap = taps.open(TapFilter())
    asks = [Ask(Operation.GET, ttlv.text(Tag.UNIQUE_IDENTIFIER, "k" * 250))] * 1000
    request = decode_request(compose.encode_request((1, 4), asks), 32, 1000)
    for _ in range(30):
        await tapped(taps, refusal(Refusal.OVERLOADED, "later", request), request=request)
    data = await tap.receive()
    assert len(data) < 4 * 1024 * 1024 + 100
    assert json.loads(data.splitlines()[-1])["lost"] > 0


def test_few_taps_are_open_at_once() -> None:
    taps = Taps()
    assert not taps.is_open
    several = [taps.open(TapFilter()) for _ in range(4)]
    with pytest.raises(ControlError, match="4 taps are open already"):
        taps.open(TapFilter())
    several[0].close()
    assert taps.is_open
    for tap in (*several[1:], taps.open(TapFilter())):
        tap.close()
    assert not taps.is_open
