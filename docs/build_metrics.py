"""Build docs/metrics.md from the table of metrics: `python docs/build_metrics.py`. A test compares the file."""

from pathlib import Path
from typing import Final

from gateway.metric_rows import Row
from gateway.metric_table import SECTIONS

FILE: Final = Path(__file__).with_name("metrics.md")
_HEAD: Final = """\
# Metrics

`/metrics` on the admin port ([operations.md](operations.md)) shows these metrics in Prometheus' text format. All
names begin with `kmip_gateway_`. A histogram has the series `_bucket`, `_count` and `_sum`. With TLS workers, the
counts of all processes are added up; counters go on when a worker ends or the configuration is reloaded, and begin at
0 when the gateway starts. `grafana/dashboards/` shows all of them.

`identity` is the name of an identity of the configuration, or `unidentified` for clients without one; never a name
that a client has chosen. When a reload removes an identity, its series end.

The stages of a request, each with a histogram: the client's handshake (`client_handshake_duration_seconds`), the wait
for a session (`request_queue_duration_seconds`), a session's opening (`session_open_duration_seconds`), the key
manager (`backend_request_duration_seconds`), and all of it (`request_duration_seconds`).

Requests leave durations and sizes in lists, which are counted once a second and before each scrape. All metrics
together cost a Get on a kept connection 2 to 3 % of its instructions ([performance.md](performance.md)).

There is no metric of a panic mode or of an effective weight: if no key manager is up, the gateway tries all of them,
and a key manager that gets few requests after an ejection is half_open in `backend_state`.

This page is generated from `gateway/metric_table.py` by `python docs/build_metrics.py`.

## How many series

The number of series depends on the configuration, not on the traffic. With *i* identities, *b* key managers and *l*
listeners there are at most some 17 *i* series of requests, durations and bytes, *i b* of `backend_identity_up`, 130
*b* of key managers and sessions, 31 *l*, and 830 others. Errors add a series for each identity and reason that has
occurred, and for each key manager, identity and reason that a session could not be opened for. 200 identities, 4 key
managers and every identity in use make some 5,900 series, which are written in steps of about a millisecond, between
which requests are served.
"""


def page() -> str:
    """Return the text of the page."""
    text = _HEAD
    for section, rows in SECTIONS:
        text += f"\n## {section.title}\n\n" + (f"{section.text}\n\n" if section.text else "")
        text += "| metric | kind | meaning |\n|---|---|---|\n"
        for kind, row in rows.values():
            labels = f"{{{','.join(row.labels)}}}" if row.labels else ""
            text += f"| `{row.name.removeprefix('kmip_gateway_')}{labels}` | {_kind(kind)} | {_meaning(row)} |\n"
    return text


def _kind(kind: type) -> str:
    return next(name for name in ("Counter", "Gauge", "Histogram") if name in kind.__name__).lower()


def _meaning(row: Row) -> str:
    return f"{row.help} {row.detail}".strip()


if __name__ == "__main__":
    FILE.write_text(page())
