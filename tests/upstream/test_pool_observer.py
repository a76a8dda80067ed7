"""The meter: the messages that an operator gets, and how often."""

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


class Watch:
    """A meter, what it has said, and what it has counted."""

    def __init__(self) -> None:
        self.metrics = Metrics("test")
        self._captured = LogCapture()
        logger = structlog.wrap_logger(
            None, processors=[self._captured], wrapper_class=structlog.make_filtering_bound_logger(0)
        )
        self.meter = PoolObserver("atlanta", "red", self.metrics, logger)

    @property
    def said(self) -> list[str]:
        """Events, with their reason where they have one; each bears the backend's name and the credential's."""
        assert {(entry["backend"], entry["credential"]) for entry in self._captured.entries} <= {("atlanta", "red")}
        return [" ".join(filter(None, (entry["event"], entry.get("reason")))) for entry in self._captured.entries]

    def counted(self, name: str) -> dict[str, float]:
        """A sample's values, by the label besides the backend."""
        return {
            "".join(value for label, value in sample.labels.items() if label != "backend"): sample.value
            for family in text_string_to_metric_families(self.metrics.exposition().decode())
            for sample in family.samples
            if sample.name == f"kmip_gateway_{name}" and sample.labels["backend"] == "atlanta"
        }


def failure(reason: str = "connect") -> BackendError:
    return BackendError("no way", backend="atlanta", stage=Stage.CONNECT, reason=reason)


async def test_sessions_that_are_flooded_with_records_are_counted_and_said_once() -> None:
    watch = Watch()

    for _ in range(3):
        watch.meter.session_closed("records")

    assert watch.counted("sessions_closed_total") == {"records": 3}
    assert watch.said == ["session closed: too many TLS records without data"]


async def test_sessions_are_counted() -> None:
    watch = Watch()

    for _ in range(3):
        watch.meter.session_opened(0.25)
    watch.meter.session_closed("idle")
    watch.meter.session_closed("idle")
    watch.meter.session_closed("lifetime")
    watch.meter.session_open_failed(failure("timeout"))

    assert watch.counted("sessions_opened_total") == {"": 3}
    assert watch.counted("session_open_duration_seconds_sum") == {"": 0.75}
    assert watch.counted("sessions_closed_total") == {"idle": 2, "lifetime": 1}
    assert watch.counted("session_open_failures_total") == {"timeout": 1}
    assert len(watch.said) == 1  # the failure


async def test_a_session_with_a_fault_is_counted_and_said_once_for_each_kind() -> None:
    watch = Watch()

    for _ in range(3):
        watch.meter.session_closed("unasked")
        watch.meter.session_closed("mismatch")

    assert watch.counted("sessions_closed_total") == {"unasked": 3, "mismatch": 3}
    assert watch.said == [
        "session closed: the key manager sent bytes that no request asked for; nothing of them was passed on",
        "session closed: the key manager answered another request; the answer was not passed on",
    ]


async def test_exchanges_are_counted_and_answers_are_timed() -> None:
    watch = Watch()

    watch.meter.exchanged("answered", 0.25)
    watch.meter.exchanged("wait_closed", 30.0)

    assert watch.counted("backend_requests_total") == {"answered": 1, "wait_closed": 1}
    assert watch.counted("backend_request_duration_seconds_sum") == {"": 0.25}
    assert watch.said == ["exchange failed"]


@in_virtual_time
async def test_a_failure_is_logged_at_its_start_its_end_and_once_a_minute() -> None:
    watch = Watch()
    watch.meter.session_opened(0.1)
    assert watch.said == []

    for _ in range(100):  # 50 s of it
        watch.meter.session_open_failed(failure("connect"))
        await trio.sleep(0.5)
    assert watch.said == ["can't open a session connect"]

    for _ in range(260):  # 130 s of another
        watch.meter.session_open_failed(failure("timeout"))
        await trio.sleep(0.5)
    assert watch.said[1:] == ["can't open a session timeout"] * 3

    watch.meter.session_opened(0.1)
    watch.meter.session_opened(0.1)
    assert watch.said[4:] == ["key manager reached again"]

    watch.meter.session_open_failed(failure("timeout"))
    assert watch.said[5:] == ["can't open a session timeout"]


async def test_a_warning_names_the_setting_to_change() -> None:
    watch = Watch()

    watch.meter.ejected("red", Effect.READ)
    watch.meter.ejected("", Effect.MUTATE)
    watch.meter.idle_limit_learned(IdleLimit(25.0))
    watch.meter.ceiling_learned(4, 64)

    ejected = "backend ejected after failures in a row"
    assert watch.said == [
        f"{ejected}: requests of this identity are sent elsewhere for a while",
        f"{ejected}: changes of every identity are sent elsewhere for a while",
        "key manager closes idle sessions early: lower pool.idle_timeout",
        "key manager allows fewer sessions than max_sessions: lower backends.max_sessions",
    ]
    assert watch.counted("backend_ejections_total") == {"red": 1, "all": 1}
