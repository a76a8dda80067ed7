"""The processes of a gateway with TLS workers, as the kernel shows them in /proc."""

from pathlib import Path

from tests.kit.processes import Gateway

_LISTENING = "0A"  # state of a socket in /proc/net/tcp


def children_of(process: int) -> list[int]:
    """Return the children of a process, the oldest first."""
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return sorted(int(child) for child in text.split())


def core_of(gateway: Gateway) -> int:
    """Return the process of the core."""
    return children_of(gateway.process.pid)[0]


def workers_of(gateway: Gateway) -> list[int]:
    """Return the processes of all workers: the supervisor's children but the first, which is the core."""
    return children_of(gateway.process.pid)[1:]


def accepting_workers_of(gateway: Gateway) -> list[int]:
    """Return the workers that have the listening socket: those that a reload has replaced have closed it."""
    (listening,) = _inodes(gateway.port, state=_LISTENING)
    return [worker for worker in workers_of(gateway) if listening in _sockets_of(worker)]


def worker_of(port: int, gateway: Gateway) -> int:
    """Return the worker that has the connection from a local port."""
    inodes = _inodes(gateway.port, peer=port)
    for worker in workers_of(gateway):
        if not inodes.keys().isdisjoint(_sockets_of(worker)):
            return worker
    raise AssertionError(f"no worker has the connection from port {port}")


def clients_of(worker: int, gateway: Gateway) -> set[int]:
    """Return the local ports of the connections that a worker has."""
    sockets = _sockets_of(worker)
    return {port for inode, port in _inodes(gateway.port).items() if inode in sockets and port}


def _inodes(port: int, *, peer: int | None = None, state: str | None = None) -> dict[str, int]:
    """Return the peers' ports of the sockets that are bound to a port, by the sockets' inodes."""
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        remote = int(fields[2].rpartition(":")[2], 16)
        if fields[1].endswith(f":{port:04X}") and peer in {None, remote} and state in {None, fields[3]}:
            found[fields[9]] = remote
    return found


def _sockets_of(process: int) -> set[str]:
    """Return the inodes of the sockets that a process has open; none if it has ended."""
    found = set()
    try:
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            try:
                found.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
            except FileNotFoundError:
                continue
    except FileNotFoundError:
        return set()
    return found
