"""The fast metrics are exposed exactly as prometheus-client's own metrics are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from gateway.fast_metrics import (
    FastCounter,
    FastCounterFamily,
    FastGaugeFamily,
    FastHistogram,
    FastHistogramFamily,
    FunctionCounter,
    FunctionGauge,
    Reading,
    ValueBuffer,
)

disable_created_metrics()  # type: ignore[no-untyped-call]  # as the gateway does

BOUNDS = (0.0005, 0.25, 1, 30)
seconds = st.one_of(st.floats(0, 100), st.sampled_from(BOUNDS))


@given(st.lists(st.sampled_from(["a", "b", 'x"y\\z']), max_size=20))
def test_counters_are_exposed_as_the_librarys(labels: list[str]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    fast = FastCounterFamily("things_total", "About things.", ["kind"], registry=ours)
    counter = Counter("things_total", "About things.", ["kind"], registry=theirs)
    for label in labels:
        fast.labels(label).inc()
        counter.labels(label).inc()

    assert generate_latest(ours) == generate_latest(theirs) == "".join(fast.text()).encode()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([1, -1])), max_size=20))
def test_gauges_are_exposed_as_the_librarys(changes: list[tuple[str, int]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    fast = FastGaugeFamily("open", "Open things.", ["kind"], registry=ours)
    gauge = Gauge("open", "Open things.", ["kind"], registry=theirs)
    for label, change in changes:
        fast.labels(label).inc(change)
        gauge.labels(label).inc(change)

    assert generate_latest(ours) == generate_latest(theirs) == "".join(fast.text()).encode()


@given(st.lists(st.tuples(st.sampled_from("ab"), seconds), max_size=20))
def test_histograms_are_exposed_as_the_librarys(observed: list[tuple[str, float]]) -> None:
    """Values on a bound and beyond the last bound are among the examples."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    fast = FastHistogramFamily("work_seconds", "About work.", ["kind"], registry=ours, buckets=BOUNDS)
    histogram = Histogram("work_seconds", "About work.", ["kind"], buckets=BOUNDS, registry=theirs)
    for label, value in observed:
        fast.labels(label).observe(value)
        histogram.labels(label).observe(value)

    assert generate_latest(ours) == generate_latest(theirs) == "".join(fast.text()).encode()
    assert repr(fast) == f"<FastHistogramFamily work_seconds: {len({label for label, _ in observed})} children>"


@given(st.lists(st.lists(seconds, max_size=20), max_size=5))
def test_values_of_a_buffer_are_counted_as_if_one_by_one(batches: list[list[float]]) -> None:
    one_by_one, together, counter, added = FastHistogram(BOUNDS), FastHistogram(BOUNDS), FastCounter(), FastCounter()
    buffer = ValueBuffer([together], counters=[counter], sums=[added])
    for batch in batches:
        for value in batch:
            one_by_one.observe(value)
            buffer.append(value)
        buffer.flush()
        buffer.flush()

    assert together.buckets() == one_by_one.buckets()
    assert together.sum == added.value == pytest.approx(one_by_one.sum)
    assert counter.value == sum(map(len, batches))


def test_a_function_gauge_is_read_at_each_scrape() -> None:
    registry = CollectorRegistry()
    gauge = FunctionGauge("things", "About things.", ["kind"], registry=registry)
    readings: list[Reading] = [(["a"], 7.0), (["b"], 5.0)]
    assert registry.get_sample_value("things", {"kind": "a"}) is None
    gauge.set_function(lambda: readings)
    assert registry.get_sample_value("things", {"kind": "a"}) == 7

    readings[:] = [(["b"], 6.0)]

    assert registry.get_sample_value("things", {"kind": "a"}) is None
    assert registry.get_sample_value("things", {"kind": "b"}) == 6


def test_a_function_counter_needs_no_labels() -> None:
    registry = CollectorRegistry()
    FunctionCounter("things_total", "About things.", registry=registry).set_function(lambda: [((), 3)])

    assert registry.get_sample_value("things_total") == 3


@given(st.lists(st.tuples(st.text(max_size=5), st.floats() | st.integers(-(10**9), 10**9)), unique_by=lambda it: it[0]))
def test_text_of_a_function_gauge_is_the_librarys(readings: list[tuple[str, float]]) -> None:
    registry = CollectorRegistry()
    gauge = FunctionGauge("things", "About \\ things\nand more.", ["kind"], registry=registry)
    gauge.set_function(lambda: [([kind], number) for kind, number in readings])

    assert "".join(gauge.text()).encode("utf-8", "surrogatepass") == generate_latest(registry)


def test_a_metric_with_several_labels_has_them_in_alphabetical_order() -> None:
    registry = CollectorRegistry()
    fast = FastCounterFamily("things_total", "About things.", ["zone", "kind"], registry=registry)
    fast.labels("z", "k").inc(2)

    assert "".join(fast.text()).splitlines()[-1] == 'things_total{kind="k",zone="z"} 2.0'
    assert "".join(fast.text()).encode() == generate_latest(registry)


def test_a_forgotten_label_value_has_no_series() -> None:
    fast = FastCounterFamily("things_total", "About things.", ["kind", "zone"], registry=CollectorRegistry())
    for kind in ("a", "b"):
        fast.labels(kind, "z").inc()

    fast.forget("kind", "a")
    fast.forget("colour", "b")

    assert [labels for labels, _ in fast.children()] == [("b", "z")]


def test_a_wrong_number_of_labels_is_a_mistake() -> None:
    fast = FastCounterFamily("things_total", "About things.", ["kind"], registry=CollectorRegistry())
    with pytest.raises(ValueError, match="things_total has the labels"):
        fast.labels("a", "b")
