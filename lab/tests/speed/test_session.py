"""Sessions by themselves: what they say of a server that was well before."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from kmip_lab.speed import operations
from kmip_lab.speed.session import Dialler
from kmip_lab.speed.trouble import TroubleError

from lab.tests.speed.conftest import Serve


def test_who_has_answered_is_not_suspected_of_not_trusting_the_client(serve: Serve, tmp_path: Path) -> None:
    """Not even where a fresh session is reset before the first answer in it."""
    with serve() as server:
        dialler = Dialler(replace(server.target, discover=False))
        query = operations.server((1, 4))

        def ask() -> None:
            session = dialler.open()
            try:
                session.ask(query)
            finally:
                dialler.close(session)

        ask()
        (tmp_path / "faults.json").write_text(json.dumps({"atlanta-001": [{"fault": "reset_before_reading"}]}))
        with pytest.raises(TroubleError, match=rf"^connection with {server.address}: \w+$"):
            _for_ever(ask)  # until the faults have been read


def _for_ever(ask: Callable[[], None]) -> None:
    while True:
        ask()
