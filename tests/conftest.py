"""The process that runs the tests keeps its rights: what is confined for good are processes of its own."""

import pytest

from gateway import cli, launch


@pytest.fixture(autouse=True)
def _keeps_its_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "harden", lambda: None)
    monkeypatch.setattr(launch, "change_user", lambda _user: None)
    monkeypatch.setattr(launch, "confine_core", lambda _writable, **_options: True)
    monkeypatch.setattr(launch, "confine_worker", lambda: True)
