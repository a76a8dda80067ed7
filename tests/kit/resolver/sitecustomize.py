"""Replaces the resolver of a Python process that is started with this directory in PYTHONPATH.

FAKE_RESOLVER names a JSON file that gives each known host name its addresses, as in ``{"a.test": ["127.0.0.2"]}``.
A name without addresses fails to resolve. The file is read for each lookup, so a name can move while the process runs.
Other names go to the system's resolver.
"""

import json
import os
import socket
from pathlib import Path
from typing import Any

_system_getaddrinfo = socket.getaddrinfo


def _getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
    """As socket.getaddrinfo. trio first asks with AI_NUMERICHOST, which no name may answer."""
    name = host.decode() if isinstance(host, bytes) else host
    flags = arguments[4] if len(arguments) > 4 else options.get("flags", 0)
    addresses = json.loads(Path(os.environ["FAKE_RESOLVER"]).read_text()).get(name)
    if addresses is None or flags & socket.AI_NUMERICHOST:
        return _system_getaddrinfo(host, *arguments, **options)
    if not addresses:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return [found for address in addresses for found in _system_getaddrinfo(address, *arguments, **options)]


socket.getaddrinfo = _getaddrinfo
