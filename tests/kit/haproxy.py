"""HAProxy for tests: before two gateways in TCP mode, polling /readyz every second."""

import csv
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from gateway.config import Address
from tests.kit.processes import Gateway, ended, free_port, is_listening, wait_until

HAPROXY: Final = shutil.which("haproxy", path="/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin")
#: No retries and no other server: what HAProxy meets at a gateway, its client meets, too.
CONFIG: Final = """
global
  stats socket {directory}/haproxy.sock mode 600
defaults
  mode tcp
  retries 0
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout check 2s
frontend kmip
  bind 127.0.0.1:{port}
  default_backend gateways
backend gateways
  balance roundrobin
  option httpchk GET /readyz
  http-check expect status 200
  default-server check inter 1s fall 1 rise 1 {header}
  server one 127.0.0.1:{one.port} port {one.admin_port}
  server two 127.0.0.1:{two.port} port {two.admin_port}
"""


class HaProxy:
    """A running HAProxy."""

    def __init__(self, port: int, control: Path) -> None:
        self.address = Address("127.0.0.1", port)
        self._control = control

    def servers(self) -> dict[str, dict[str, str]]:
        """Return the statistics of both gateways, by the names "one" and "two"."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self._control))
            sock.sendall(b"show stat\n")
            text = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
        rows = csv.DictReader(text.removeprefix("# ").splitlines())
        return {row["svname"]: row for row in rows if row["svname"] in {"one", "two"}}

    def is_up(self, *names: str) -> bool:
        """Return True if just these gateways get connections."""
        return {name for name, row in self.servers().items() if row["status"].startswith("UP")} == set(names)


@contextmanager
def running_haproxy(directory: Path, one: Gateway, two: Gateway, header: str) -> Iterator[HaProxy]:
    """Run HAProxy until the block ends. ``header`` is a setting of its servers, such as ``send-proxy-v2``."""
    assert HAPROXY is not None
    port = free_port()
    config = directory / "haproxy.cfg"
    config.write_text(CONFIG.format(directory=directory, port=port, one=one, two=two, header=header))
    with (directory / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([HAPROXY, "-db", "-f", str(config)], stdout=log, stderr=log)
    with ended(process):
        wait_until(lambda: process.poll() is not None or is_listening(port), "HAProxy's start")
        assert process.poll() is None, (directory / "haproxy.log").read_text()
        haproxy = HaProxy(port, directory / "haproxy.sock")
        wait_until(lambda: haproxy.is_up("one", "two"), "both gateways' first good answer")
        yield haproxy
