"""The right key or none: key managers that send answers twice, and clients that check each answer.

The real dispatcher, balancer, pools and sessions in virtual time. The full run is
``ANSWERS=20000 pytest -s tests/dispatcher/test_dispatcher_right_key.py``; it prints the outcome of each load.
"""

import os
from collections import Counter
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Final, NamedTuple

import pytest
import trio

from gateway.kmip import compose, ttlv
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Request, Response
from gateway.kmip.spec import Operation, ResultStatus, Tag
from gateway.policy import Refusal
from tests.kit.deployment import Deployment, deployment
from tests.kit.fake_backends import Connection, FakeKeyManager, ask, in_virtual_time

ANSWERS: Final = int(os.environ.get("ANSWERS", "2000"))
CLIENTS: Final = 6
ONE_IN: Final = 10  # answers that are sent twice
GET, CREATE, DECRYPT = Operation.GET, Operation.CREATE, Operation.DECRYPT

MakeRequest = Callable[[int], Request]


def get(number: int) -> Request:
    return ask(f"key-{number}", GET)


def batch(number: int) -> Request:
    return ask(f"key-{number}", GET, Operation.GET_ATTRIBUTES, GET)


def create(_number: int) -> Request:
    return ask("", CREATE)


def decrypt(number: int) -> Request:
    """Decrypt other data with the same key each time."""
    payload = ttlv.text(Tag.UNIQUE_IDENTIFIER, "the key") + ttlv.octets(Tag.DATA, b"%d" % number)
    return decode_request(compose.encode_request((1, 4), [compose.Ask(DECRYPT, payload)]))


class Twice:
    """A key manager that sends one in ten answers twice, up to 20 ms later.

    If it is ``synchronous``, it sends the second copy before it reads the next request; else at any time.
    """

    def __init__(self, nursery: trio.Nursery, name: str, *, synchronous: bool) -> None:
        self._nursery = nursery
        self._name = name
        self._synchronous = synchronous
        self._random = Random(7)
        self._numbers = count()

    def __call__(self, connection: Connection, request: Request) -> None:
        answer = self.answer_to(request)
        at = trio.current_time() + connection.key_manager.operation_cost
        connection.say(answer, at=at)
        is_probe = request.items[0].operation == Operation.DISCOVER_VERSIONS
        if is_probe or self._random.randrange(ONE_IN):
            return
        later = at + self._random.uniform(0, 0.02)
        if self._synchronous:
            connection.say(answer, at=later)
        else:
            self._nursery.start_soon(self._say, connection, answer, later)

    def answer_to(self, request: Request) -> bytes:
        results = [
            compose.Result(ResultStatus.SUCCESS, item.operation, payload=self._payload(request, item.operation, place))
            for place, item in enumerate(request.items)
        ]
        return compose.encode_response(request.version, results, now=0)

    def _payload(self, request: Request, operation: int, place: int) -> bytes:
        if operation == CREATE:
            return ttlv.text(Tag.UNIQUE_IDENTIFIER, f"{self._name}-{next(self._numbers)}")
        named = b"".join(request.items[place].unique_identifiers)
        data = b"".join(_values(request, place, Tag.DATA))
        return ttlv.text(Tag.UNIQUE_IDENTIFIER, named.decode()) + ttlv.octets(Tag.KEY_MATERIAL, b"of " + named + data)

    @staticmethod
    async def _say(connection: Connection, answer: bytes, at: float) -> None:
        await trio.sleep_until(at)
        connection.say(answer)


def _values(message: Request | Response, place: int, tag: Tag) -> list[bytes]:
    item = message.items[place]
    fields = ttlv.walk(message.frame, *item.fields[item.PAYLOAD])
    return [message.frame[field.start : field.end] for field in fields if field.tag == tag]


class Outcome(NamedTuple):
    """Numbers of right and wrong answers, of refusals, and of closed sessions."""

    right: int
    wrong: int
    failed: Counter[Refusal | None]
    closed: Counter[str]

    @property
    def answers(self) -> int:
        return self.right + self.wrong + self.failed.total()


async def ask_all(it: Deployment, make: MakeRequest, answers: int) -> Outcome:
    """Let a few clients ask one request after another, and check each answer."""
    right: list[int] = []
    wrong: list[int] = []
    failed: Counter[Refusal | None] = Counter()
    given: set[bytes] = set()
    numbers = iter(range(answers))

    async def client() -> None:
        for number in numbers:
            request = make(number)
            answer = await it.ask(request)
            if answer.response is None:
                failed[answer.refusal] += 1
            else:
                (right if _is_right(request, answer.response, given) else wrong).append(number)

    async with trio.open_nursery() as clients:
        for _ in range(CLIENTS):
            clients.start_soon(client)
    closed = sum((observer.closed for observer in it.observers), Counter[str]())
    return Outcome(len(right), len(wrong), failed, closed)


def _is_right(request: Request, response: Response, given: set[bytes]) -> bool:
    if request.items[0].operation == CREATE:
        (made,) = response.items[0].unique_identifiers
        is_new = made not in given
        given.add(made)
        return is_new
    return all(
        _values(response, place, Tag.KEY_MATERIAL)
        == [b"of " + b"".join(request.items[place].unique_identifiers + _values(request, place, Tag.DATA))]
        for place in range(len(request.items))
    )


def speak_twice(it: Deployment, *, synchronous: bool) -> None:
    for key_manager in it.key_managers:
        key_manager.behaviour = Twice(it.nursery, key_manager.name, synchronous=synchronous)


LOADS: Final[dict[str, MakeRequest]] = {
    "gets": get,
    "batches": batch,
    "creates": create,
    "gets and creates": lambda number: (get, create)[number % 2](number),
}


@in_virtual_time
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("key_managers", [1, 2])
@pytest.mark.parametrize("synchronous", [True, False], ids=["synchronous", "at any time"])
async def test_no_client_gets_a_wrong_key_from_a_backend_that_answers_twice(
    load: str, key_managers: int, synchronous: bool
) -> None:
    async with deployment(*(FakeKeyManager(f"kms-{number}") for number in range(key_managers))) as it:
        speak_twice(it, synchronous=synchronous)

        outcome = await ask_all(it, LOADS[load], ANSWERS)

    print(f"\n{outcome.answers} {load}, {key_managers} key managers, synchronous={synchronous}: {outcome}")
    assert outcome.wrong == 0
    assert outcome.answers == ANSWERS
    assert outcome.failed.total() < ANSWERS / 50


@in_virtual_time
async def test_decrypted_data_is_right_while_a_backend_is_distrusted() -> None:
    """The identifier does not tell two Decrypts with one key apart: sessions are validated before each of them."""
    async with deployment("atlanta") as it:
        speak_twice(it, synchronous=True)
        it.backends[0].pools["red"].endpoint.distrust(trio.current_time())

        outcome = await ask_all(it, decrypt, ANSWERS)

    print(f"\n{outcome.answers} decrypts: {outcome}")
    assert (outcome.wrong, outcome.failed.total()) == (0, 0)


@in_virtual_time
async def test_a_change_with_a_wrong_answer_ends_as_outcome_unknown() -> None:
    async with deployment("atlanta", "boston") as it:
        it.key_managers[0].behaviour = lambda connection, _request: connection.say(
            Twice(it.nursery, "atlanta", synchronous=True).answer_to(ask("key-2", Operation.DESTROY))
        )
        it.key_managers[1].behaviour = it.key_managers[0].behaviour

        answer = await it.ask(ask("key-1", Operation.DESTROY))

    assert answer.refusal is Refusal.OUTCOME_UNKNOWN


@in_virtual_time
async def test_a_read_with_a_wrong_answer_is_tried_at_another_backend() -> None:
    async with deployment("atlanta", "boston") as it:
        it.key_managers[0].behaviour = lambda connection, _request: connection.say(
            Twice(it.nursery, "atlanta", synchronous=True).answer_to(get(2))
        )

        for _ in range(4):
            answer = await it.ask(get(1))
            assert answer.response is not None
            assert answer.response.items[0].unique_identifiers == [b"key-1"]
