"""HAProxy before two gateways, with PROXY protocol version 2 and health checks by /readyz."""

import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from tests.kit.haproxy import HAPROXY, running_haproxy
from tests.kit.processes import Certificates, Gateway
from tests.peers.build import Software
from tests.peers.peer import Front


def _version() -> str:
    if HAPROXY is None:
        return ""
    printed = subprocess.run([HAPROXY, "-v"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d[\d.]*)", printed)
    return found[1] if found else "of an unknown version"


@contextmanager
def _running(certificates: Certificates, gateways: Sequence[Gateway]) -> Iterator[int]:
    one, two = gateways
    with running_haproxy(certificates.directory, one, two, "send-proxy-v2") as haproxy:
        yield haproxy.address.port


FRONT: Final = Front(
    Software("HAProxy", _version(), "C", lambda: None if HAPROXY else "haproxy is not installed"),
    _running,
    'proxy_protocol = true\nproxy_from = ["127.0.0.1"]',
)
