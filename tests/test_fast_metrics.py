"""The fast metrics are exposed exactly as prometheus-client's own metrics are."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

from gateway.fast_metrics import FastCounterFamily, FastHistogramFamily, FunctionCounter, FunctionGauge, Reading

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

    assert generate_latest(ours) == generate_latest(theirs)


@given(st.lists(st.tuples(st.sampled_from("ab"), seconds), max_size=20))
def test_histograms_are_exposed_as_the_librarys(observed: list[tuple[str, float]]) -> None:
    """Values on a bound and beyond the last bound are among the examples."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    fast = FastHistogramFamily("work_seconds", "About work.", ["kind"], registry=ours, buckets=BOUNDS)
    histogram = Histogram("work_seconds", "About work.", ["kind"], buckets=BOUNDS, registry=theirs)
    for label, value in observed:
        fast.labels(label).observe(value)
        histogram.labels(label).observe(value)

    assert generate_latest(ours) == generate_latest(theirs)
    assert repr(fast) == f"<FastHistogramFamily work_seconds: {len({label for label, _ in observed})} children>"


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
