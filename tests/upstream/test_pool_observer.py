"""Tests of the pool observer: the messages that an operator gets, and how often."""

import structlog
import trio
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import LogCapture

from gateway.errors import BackendError, Stage
from gateway.metrics import Metrics
from gateway.policy import Effect
from gateway.upstream.idle_limit import IdleLimit
from gateway.upstream.pool_observer import PoolObserver
from tests.kit.fake_backends import in_virtual_time


class Observed:
    """A PoolObserver with its log lines and its metrics."""

    def __init__(self, *, is_of_many: bool = False) -> None:
        self.metrics = Metrics("test")
        self.captured = LogCapture()
        logger = structlog.wrap_logger(
            None, processors=[self.captured], wrapper_class=structlog.make_filtering_bound_logger(0)
        )
        self.observer = PoolObserver("atlanta", "red", self.metrics, logger, is_of_many=is_of_many)

    @property
    def logged(self) -> list[str]:
        """Events and their reasons. Asserts that each names the backend and the credential."""
        assert {(entry["backend"], entry["credential"]) for entry in self.captured.entries} <= {("atlanta", "red")}
        entries = [entry for entry in self.captured.entries if entry["log_level"] != "debug"]
        return [" ".join(filter(None, (entry["event"], entry.get("reason")))) for entry in entries]

    def counted(self, name: str) -> dict[str, float]:
        """Return the values of a sample, by the label besides the backend."""
        return {
            "".join(value for label, value in sample.labels.items() if label != "backend"): sample.value
            for family in text_string_to_metric_families(self.metrics.exposition().decode())
            for sample in family.samples
            if sample.name == f"kmip_gateway_{name}" and sample.labels["backend"] == "atlanta"
        }


def failure(reason: str = "connect") -> BackendError:
    return BackendError("no way", backend="atlanta", stage=Stage.CONNECT, reason=reason)


#: Closed sessions by reason, before any: reasons that alerts look at are there from the start.
NO_FAULTS = {"unasked": 0, "mismatch": 0, "records": 0}


async def test_sessions_flooded_with_records_are_counted_and_logged_once() -> None:
    it = Observed()

    for _ in range(3):
        it.observer.session_closed("records", 20.0)

    assert it.counted("sessions_closed_total") == NO_FAULTS | {"records": 3}
    assert it.logged == ["session closed: too many TLS records without data"]


async def test_sessions_are_counted() -> None:
    it = Observed()

    for _ in range(3):
        it.observer.session_opened(0.25)
    it.observer.session_closed("idle", 20.0)
    it.observer.session_closed("idle", 20.0)
    it.observer.session_closed("lifetime", 20.0)
    it.observer.session_open_failed(failure("timeout"))

    assert it.counted("sessions_opened_total") == {"": 3}
    assert it.counted("session_open_duration_seconds_sum") == {"": 0.75}
    assert it.counted("sessions_closed_total") == NO_FAULTS | {"idle": 2, "lifetime": 1}
    assert it.counted("session_age_seconds_count") == {"": 3}
    assert it.counted("session_age_seconds_sum") == {"": 60}
    assert it.counted("session_open_failures_total") == {"redtimeout": 1}
    assert len(it.logged) == 1  # the failure


async def test_a_session_with_a_fault_is_counted_and_logged_once_per_fault() -> None:
    it = Observed()

    for _ in range(3):
        it.observer.session_closed("unasked", 20.0)
        it.observer.session_closed("mismatch", 20.0)

    assert it.counted("sessions_closed_total") == NO_FAULTS | {"unasked": 3, "mismatch": 3}
    assert it.logged == [
        "session closed: the key manager sent bytes that no request asked for; they were dropped",
        "session closed: the key manager answered a different request; the answer was dropped",
    ]


async def test_exchanges_are_counted_and_answers_are_timed() -> None:
    it = Observed()

    it.observer.exchanged("answered", 0.25, is_reused=True)
    it.observer.exchanged("wait_closed", 30.0, is_reused=False)

    assert it.counted("backend_requests_total") == {"answered": 1, "wait_closed": 1}
    assert it.counted("backend_request_duration_seconds_sum") == {"": 0.25}
    assert it.counted("session_reuses_total") == {"": 1}
    assert it.logged == ["exchange failed"]


async def test_waits_and_stale_sessions_are_counted() -> None:
    it = Observed()

    it.observer.waited(0.25)
    it.observer.found_stale("in_flight")
    it.observer.wait_timed_out()
    it.observer.closed_while_idle(31.0)

    assert it.counted("request_queue_duration_seconds_sum") == {"": 0.25}
    assert it.counted("session_stale_total") == {"in_flight": 1}
    assert it.counted("pool_wait_timeouts_total") == {"": 1}
    assert it.counted("session_idle_at_remote_close_seconds_sum") == {"": 31}


@in_virtual_time
async def test_a_failure_is_logged_at_its_start_its_end_and_once_a_minute() -> None:
    it = Observed()
    it.observer.session_opened(0.1)
    assert it.logged == []

    for _ in range(100):  # 50 s of it
        it.observer.session_open_failed(failure("connect"))
        await trio.sleep(0.5)
    assert it.logged == ["can't open a session connect"]

    for _ in range(260):  # 130 s of the next
        it.observer.session_open_failed(failure("timeout"))
        await trio.sleep(0.5)
    assert it.logged[1:] == ["can't open a session timeout"] * 3

    it.observer.session_opened(0.1)
    it.observer.session_opened(0.1)
    assert it.logged[4:] == ["key manager reached again"]

    it.observer.session_open_failed(failure("timeout"))
    assert it.logged[5:] == ["can't open a session timeout"]


async def test_a_failure_to_open_a_session_is_logged_with_its_remedy() -> None:
    it = Observed()
    it.observer.session_open_failed(
        BackendError("no way", backend="atlanta", stage=Stage.CONNECT, reason="tls", cause="not_tls")
    )
    (entry,) = it.captured.entries
    assert (entry["reason"], entry["detail"]) == ("tls", "no way")
    assert "KMIP port" in entry["remedy"]


async def test_a_warning_names_the_setting_to_change() -> None:
    it = Observed()

    it.observer.ejected("red", Effect.READ)
    it.observer.ejected("", Effect.MUTATE)
    it.observer.idle_limit_learned(IdleLimit(25.0))
    it.observer.ceiling_learned(4, 64)

    ejected = "backend ejected after consecutive failures"
    assert it.logged == [
        f"{ejected}: requests of this identity go to other backends",
        f"{ejected}: changes of every identity go to other backends",
        "key manager closes idle sessions early: lower pool.idle_timeout",
        "key manager allows fewer sessions than max_sessions: lower backends.max_sessions",
    ]
    assert it.counted("backend_ejections_total") == {"red": 1, "all": 1}


async def test_failures_of_many_clients_are_logged_once_for_each_reason() -> None:
    it = Observed(is_of_many=True)

    for _ in range(100):
        it.observer.session_open_failed(failure("credential"))
        it.observer.session_opened(0.1)
        it.observer.session_open_failed(failure("connect"))

    assert it.logged == ["can't open a session credential", "can't open a session connect"]
    assert it.counted("session_open_failures_total") == {"redcredential": 100, "redconnect": 100}
