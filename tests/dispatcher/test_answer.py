"""Answers: each refusal has its Result Message, and a change that was sent is never said not to have run."""

import pytest

from gateway.dispatcher.answer import BAD_MARKS, NOT_TAKEN, Answer, bad_mark, final_error
from gateway.errors import BackendError, Stage
from gateway.kmip.decode import decode_response
from gateway.kmip.spec import Operation, ResultStatus
from gateway.policy import Effect, Refusal, effect_of
from gateway.upstream.backend import Backend
from gateway.upstream.slots import Slots
from tests.kit.fake_backends import answer_to, ask

READ, CHANGE = ask("key", Operation.GET), ask("key", Operation.CREATE)


def message_of(answer: Answer) -> str:
    """Return the Result Message of the gateway's own answer."""
    (item,) = decode_response(answer.frame).items
    assert item.status == ResultStatus.OPERATION_FAILED
    return item.message or ""


def broken(reason: str) -> BackendError:
    return BackendError("broke", backend="atlanta", stage=Stage.WAIT, reason=reason)


def test_a_backends_response_is_passed_on_as_it_is() -> None:
    backend, response = Backend("atlanta", Slots(1), {}), decode_response(answer_to(READ))
    answer = Answer.of(response, backend)
    assert (answer.frame, answer.response, answer.backend) == (answer_to(READ), response, backend)
    assert (answer.refusal, answer.detail) == (None, "")


@pytest.mark.parametrize("effect", Effect, ids=lambda effect: effect.name)
@pytest.mark.parametrize("reason", ["closed", "timeout", *sorted(NOT_TAKEN)])
def test_the_outcome_of_every_effect_but_reads_is_unknown(reason: str, effect: Effect) -> None:
    message = message_of(final_error(CHANGE, effect, broken(reason)))
    assert ("outcome is unknown" in message) is (effect not in {Effect.READ, Effect.TOUCH})


def test_the_final_error_names_the_backend_in_the_log_only() -> None:
    answer = final_error(READ, effect_of(READ), broken("closed"))
    assert answer.refusal is Refusal.BACKEND_FAILED
    assert "atlanta" in answer.detail
    assert b"atlanta" not in answer.frame


@pytest.mark.parametrize("refusal", BAD_MARKS, ids=lambda refusal: refusal.value)
def test_a_bad_mark_has_a_message_without_a_backends_name(refusal: Refusal) -> None:
    answer = bad_mark(refusal, READ)
    assert (answer.refusal, message_of(answer)) == (refusal, BAD_MARKS[refusal])
