"""The qClient configuration file: the application note's own, and mistakes in it."""
# ruff: noqa: RUF001 - typographic quotes are what this is about

from pathlib import Path

import pytest
from kmip_lab.speed.qclient import read

from gateway.config import Address
from gateway.errors import ConfigError
from lab.tests.kit.qclient_file import THE_NOTES_OWN

FILES = ("my-cert.pem", "ca-cert.pem", "my-key.pem")
HERE = THE_NOTES_OWN.replace("E:/usr/local/etc/certs/", "")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).touch()
    return tmp_path


def written(directory: Path, text: str) -> Path:
    path = directory / "kmip.cfg"
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(path: Path) -> list[str]:
    """Return the mistakes, without the name of the file."""
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert all(mistake.startswith(f"{path}") for mistake in caught.value.mistakes)
    assert not any("\n" in mistake for mistake in caught.value.mistakes)
    return [mistake.removeprefix(f"{path}") for mistake in caught.value.mistakes]


@pytest.mark.parametrize(
    "text",
    [
        HERE,
        HERE.replace("‘", "'").replace("’", "'"),
        HERE.replace("‘", '"').replace("’", '"'),
        HERE.replace("\n", " "),
        HERE.replace("\n", "\r\n"),
    ],
    ids=["typographic", "plain", "double", "one line", "of Windows"],
)
def test_the_settings_of_a_file_make_a_target(directory: Path, text: str) -> None:
    target = read(written(directory, text))
    assert target.addresses == (Address("kmip.mydomain.com", 5696),)
    assert [target.certificate, target.ca, target.private_key] == [directory / name for name in FILES]
    assert target.password == "password"
    assert target.versions == ((1, 3), (1, 2), (1, 1), (1, 0))
    assert target.discover
    assert "password" not in repr(target).replace("password=", "")


def test_port_version_and_modules_may_be_left_out(directory: Path) -> None:
    text = "Session={Host='::1', Public=PEM:'my-cert.pem', CA_Cert=PEM:'ca-cert.pem', Private=PEM:'my-key.pem'}"
    target = read(written(directory, text))
    assert target.addresses == (Address("::1", 5696),)
    assert target.versions[0] == (1, 4)
    assert target.password is None


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("Host=’kmip.mydomain.com’,", "", ":6: Session: Host is missing; add it"),
        ("Host=", "Hots=", ":8: Session: a setting on this line is not known; there are Protocol, Host, Port"),
        ("Host=", "host=", ":8: Session: host is not known; write it as Host"),
        ("kmip.mydomain.com", "kmip..com", ":8: Session: Host: is no host name, and no IP address; write one"),
        ("Presentation=", "Prestation=", ":4: a section on this line is not known; there are Modules, Presentation"),
        ("’5696’", "’kmip’", ":9: Session: Port: is no port; write a number from 1 to 65535"),
        ("’5696’", "’0’", ":9: Session: Port: is no port"),
        ("’5696’", "’5696’:’5697’", ":9: Session: Port: must have one value"),
        ("’1.3’:", "’1.7’:", ":5: Presentation: Version: number 1 is not supported; choose from 1.0, 1.1"),
        ("’1.3’:’1.2’:’1.1’:’1.0’", "", ":5: Presentation: Version: ',' stands instead of a value; write one"),
        ("=KMIP", "=PKCS11", ":5: Presentation: Protocol: must be KMIP"),
        ("=TTLV", "=JSON", ":5: Presentation: Format: must be TTLV"),
        ("=SSL", "=TCP", ":7: Session: Protocol: must be SSL or TLS"),
        ("PEM:’my-key", "P12:’my-key", ":13: Session: Private: is not of the kind PEM, and only that is read"),
        ("PEM:’my-key.pem’", "’my-key.pem’", ":13: Session: Private: is not of the kind PEM"),
        (
            "CA_Cert=PEM:’ca-cert.pem’",
            "CA_Cert=’ca-cert.pem’",
            ":11: Session: CA_Cert: is not of this form; write CA_Cert=PEM",
        ),
        ("’my-key.pem’", "’no-key.pem’", ":13: Session: Private: its file is not in "),
        ("Port=’5696’", "Host=’again’", ":9: Session: Host stands twice; leave one out"),
        ("’password’", "’password", ":13: a quote is opened and not closed on the same line; close it"),
        ("Authenticate}", "Authenticate", "Session: the file ends behind Authenticate; a comma or } should be there"),
        ("Session = {", "Session {", ":6: '{' stands after Session; = should be there"),
        ("Port=’5696’", "Port=", ":9: Session: Port: ',' stands instead of a value; write one there, in quotes"),
        ("TTLV},", "TTLV}", ":6: 'Session' stands instead of a comma or the end"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(directory: Path, old: str, new: str, expected: str) -> None:
    assert old in HERE
    found = mistakes(written(directory, HERE.replace(old, new, 1)))
    assert any(expected in one for one in found), found


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert mistakes(tmp_path / "kmip.cfg") == [": No such file or directory; give a qClient configuration file"]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("", ": Session is missing; add Session={...}"),
        (HERE.replace("Session", "session"), ":6: session is not known; write it as Session"),
        (HERE.replace("Session", "Sesion"), ":6: a section on this line is not known; there are Modules, "),
    ],
)
def test_a_file_without_a_session_section_is_a_single_mistake(directory: Path, text: str, mistake: str) -> None:
    (found,) = mistakes(written(directory, text))
    assert found.startswith(mistake)


@pytest.mark.parametrize(
    "private",
    [
        "PEM:'key.pem' 'secret'",
        "PEM:'key.pem:'secret'",
        "PEM:'key.pem:'secret',",
        "PEM:'key.pem':secret',",
        "PEM:'key.pem':'secret,",
        "PEM:key.pem:pass,secret",
        "PEM:key.pem:pass,secret=",
        "PEM:key.pem:pass,secret:word",
        "PEM:key.pem:pass,secret,secret",
        "PEM:key.pem:pass}secret",
        "PEM:key.pem:pass},secret={",
        "PEM:key.pem:pass},secret",
        "PEM:'secret':'key.pem'",
        "'secret':'key.pem'",
        "PEM:'key.pem':'pass':'secret'",
        "PEM:key.pem:pass, Port='secret'",
        "PEM:key.pem:pass, Host='sec ret secret'",
        "PEM:key.pem:pass, Certificate=PEM:'key.pem:secret'",
        "PEM:key.pem:pass, Protocol=secret",
    ],
)
def test_passwords_are_not_repeated_wherever_a_quote_is_missing(directory: Path, private: str) -> None:
    for text in (f"Session={{Private={private}}}", HERE.replace("PEM:’my-key.pem’:’password’", private)):
        assert not any("secret" in one for one in mistakes(written(directory, text)))


def test_a_missing_quote_before_a_password_is_reported_without_it(directory: Path) -> None:
    found = mistakes(written(directory, HERE.replace("my-key.pem’:", "my-key.pem:").replace("’", "'")))
    assert found == [":13: Session: a word stands behind Private; a comma or } should be there"]
