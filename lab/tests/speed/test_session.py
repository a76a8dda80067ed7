"""Sessions, and the hints in their errors."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from kmip_lab.speed.errors import OperationError
from kmip_lab.speed.session import Dialer

from gateway.kmip import compose
from lab.tests.kit.speed_server import Serve


def test_a_server_that_has_answered_is_not_said_to_distrust_the_client(serve: Serve, tmp_path: Path) -> None:
    """A fresh session is reset before the first answer in it."""
    with serve() as server:
        dialer = Dialer(replace(server.target, discover=False))
        query = compose.query((1, 4))

        def ask() -> None:
            session = dialer.open()
            try:
                session.ask(query)
            finally:
                dialer.close(session)

        ask()
        (tmp_path / "faults.json").write_text(json.dumps({"atlanta-001": [{"fault": "reset_before_reading"}]}))
        with pytest.raises(OperationError, match=rf"^connection with {server.address}: \w+$"):
            _for_ever(ask)  # until the faults have been read


def _for_ever(ask: Callable[[], None]) -> None:
    while True:
        ask()
