"""Tallies say at a scrape what prometheus-client's own instruments would say."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

from gateway.tallies import Counts, Timings

disable_created_metrics()  # type: ignore[no-untyped-call]  # as the gateway does

BOUNDS = (0.0005, 0.25, 1, 30)
seconds = st.one_of(st.floats(0, 100), st.sampled_from(BOUNDS))


@given(st.lists(st.sampled_from(["a", "b", 'x"y\\z']), max_size=20))
def test_counters_are_exposed_as_the_librarys_are(labels: list[str]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counts = Counts("things_total", "About things.", ["kind"], ours)
    counter = Counter("things_total", "About things.", ["kind"], registry=theirs)
    for label in labels:
        counts.labels(label).inc()
        counter.labels(label).inc()

    assert generate_latest(ours) == generate_latest(theirs)


@given(st.lists(st.tuples(st.sampled_from("ab"), seconds), max_size=20))
def test_histograms_are_exposed_as_the_librarys_are(observed: list[tuple[str, float]]) -> None:
    """Also what falls on a bound, and what is beyond the last."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    timings = Timings("work_seconds", "About work.", ["kind"], ours, BOUNDS)
    histogram = Histogram("work_seconds", "About work.", ["kind"], buckets=BOUNDS, registry=theirs)
    for label, value in observed:
        timings.labels(label).observe(value)
        histogram.labels(label).observe(value)

    assert generate_latest(ours) == generate_latest(theirs)
    assert repr(timings) == f"<Timings work_seconds: {len({label for label, _ in observed})} children>"
