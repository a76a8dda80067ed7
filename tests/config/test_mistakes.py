"""Texts of mistakes in a configuration."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.build_check import build_mistakes
from gateway.config import advice, load, warnings
from gateway.config.mistakes import EXAMPLES
from gateway.config.model import LISTS, SECTIONS
from gateway.errors import ConfigError
from tests.kit.config_files import SECOND_BACKEND, SMALL, mistakes_in, unfolded, write
from tests.kit.wrong_files import put

#: The file has texts of SMALL that are replaced (-), their replacement (+), files of other kinds (@ FILE KIND), and
#: every mistake (=) and warning (~) that ``check`` must report, for a reader to review. Without a "-", the "+" are
#: added at the end. A line that is indented further continues the line above.
REVIEWED: Final = Path(__file__).with_name("mistakes.txt")
_ENDS_SOON: Final = re.compile(r".* ends in 0 days, on .*; renew it")  # of the certificates of tests


def read_cases(text: str) -> list[Any]:
    cases = []
    for case in re.split(r"\n(?=\w)", text.strip()):
        name, *rows = re.sub(r"\n {4}", " ", case).split("\n")
        removed, added, files, said, warned = ([row[4:] for row in rows if row[2] == mark] for mark in "-+@=~")
        cases.append(pytest.param("\n".join(removed), "\n".join(added), files, said, warned, id=name))
    return cases


def found_by_check(folder: Path, old: str, new: str, files: list[str]) -> tuple[list[str], list[str]]:
    """Return the mistakes and the warnings of ``check``, without the path of the configuration."""
    text = SMALL.replace(old, new, 1) if old else SMALL + new
    assert text != SMALL or files
    for name, kind in map(str.split, files):
        put(folder / name, kind)
    path = write(folder, text)
    warned: list[str] = []
    try:
        config = load(path)
        mistakes = [f"{path}: {mistake}" for mistake in build_mistakes(config)]
        now = datetime.now(UTC)
        if not mistakes:
            warned = [each for each in [*advice(config, now), *warnings(config, now)] if not _ENDS_SOON.fullmatch(each)]
    except ConfigError as error:
        mistakes = error.mistakes
    assert all(mistake.startswith(f"{path}: ") and mistake.isprintable() for mistake in mistakes)
    return [mistake.removeprefix(f"{path}: ").replace(str(folder), "DIR") for mistake in mistakes], [
        warning.replace(str(folder), "DIR") for warning in warned
    ]


@pytest.mark.parametrize(("old", "new", "files", "mistakes", "warned"), read_cases(REVIEWED.read_text()))
def test_a_mistake_says_what_is_wrong_and_what_to_do(
    folder: Path, old: str, new: str, files: list[str], mistakes: list[str], warned: list[str]
) -> None:
    assert mistakes or warned
    assert found_by_check(folder, old, new, files) == (mistakes, warned)


def test_an_empty_file_lacks_three_sections(folder: Path) -> None:
    assert mistakes_in(folder, "") == [
        "listeners: missing; add [[listeners]]",
        "backends: missing; add [[backends]]",
        "identities: missing; add [[identities]]",
    ]
    assert mistakes_in(folder, "listeners = []\nbackends = [1]\nidentities = [{}]") == [
        "listeners: is empty; give at least one table",
        "backends[0]: must be a table; write [[backends]]",
        'identities[0].name: missing; add a line such as name = "a-name"',
        'identities[0].match: missing; add a line such as match = { subject_cn = "app-1" }',
        'identities[0].certificate: missing; add a line such as certificate = "certs/own.pem"',
        'identities[0].private_key: missing; add a line such as private_key = "certs/own.key"',
    ]


def test_all_mistakes_are_reported_at_once(folder: Path) -> None:
    """Of single settings, of the files they name, and of settings that contradict each other, in one table or many."""
    (folder / "clients-ca.pem").unlink()
    text = (
        SMALL.replace('"modern"', '"modren"')
        .replace("shared = true\n", "")
        .replace('"gateway-client.key"', '"server.key"')
        .replace('"127.0.0.1:9696"', '"127.0.0.1:5696"')
        + SECOND_BACKEND.replace("london-001", "atlanta-001").replace("ca =", "cca =")
        + "[deadlines]\nrequest = 4\nconect = 1\n[limits]\nmax_depth = 1000\n"
    )
    assert mistakes_in(folder, text) == unfolded("""
        listeners["kmip"].client_ca: there is no file DIR/clients-ca.pem; correct the path (a relative path
            begins in the directory of the configuration)
        listeners["kmip"].tls_policy: "modren" is not known; write "modern", "compatible" or "legacy"
        backends[1].ca: missing; give a file with the CA that issued the key manager's certificate, or pin the
            certificate with pinned_sha256
        backends[1].cca: unknown key "cca"; did you mean "ca"?
        identities["everyone"].shared: is false, but match can match more than one client (subject_cn has a
            wildcard), and the gateway shows the key managers one certificate for all of them: they would see, use and
            destroy each other's keys; narrow match to one literal value, or set shared = true if that is intended
        identities["everyone"].private_key: DIR/server.key does not belong to the certificate in
            DIR/gateway-client.pem; give the key of that certificate
        deadlines.conect: unknown key "conect"; did you mean "connect"?
        limits.max_depth: 1000 is too much; give at most 128
        backends[1].name: "atlanta-001" is also the name of backends[0]; give each table its own name
        admin.bind: 127.0.0.1:5696 is also the address of listeners["kmip"]; give each its own port
        pool.queue_timeout: 5 s, its default, is longer than deadlines.request = 4 s, which includes this time; set
            queue_timeout to less, or raise deadlines.request
    """)


@pytest.mark.parametrize("setting", ["certificate", "name", "tls_policy", "bind"])
def test_a_private_key_in_the_wrong_place_is_not_repeated(folder: Path, setting: str) -> None:
    secret = "-----BEGIN PRIVATE KEY-----\\nMIGHAgEAMBMG\\n-----END PRIVATE KEY-----"
    text = re.sub(rf'^{setting} = ".*"$', lambda _: f'{setting} = "{secret}"', SMALL, count=1, flags=re.MULTILINE)
    assert "MIGH" not in "\n".join(mistakes_in(folder, text))


def test_every_required_setting_has_an_example() -> None:
    required = {
        key for section in LISTS for key, field in SECTIONS[section].model_fields.items() if field.is_required()
    }
    assert required == set(EXAMPLES)
