"""The process that runs the tests keeps its rights: what is confined for good are processes of its own."""

import signal

import pytest

from gateway import cli, launch

# A shell's background job ignores SIGINT, and so would each process that it starts; tests send SIGINT to theirs.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _keeps_its_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "harden", lambda: None)
    monkeypatch.setattr(launch, "change_user", lambda _user: None)
    monkeypatch.setattr(launch, "confine_core", lambda _writable, **_options: True)
    monkeypatch.setattr(launch, "confine_worker", lambda: True)
