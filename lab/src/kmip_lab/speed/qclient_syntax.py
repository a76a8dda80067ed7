"""The form of a qClient configuration file, as the application note prints one ("Establishing a connection").

    Presentation={Protocol=KMIP, Version='1.3':'1.2', Format=TTLV},
    Session={Protocol=SSL, Host='kmip.example.com', Port='5696', Private=PEM:'key.pem':'password', Authenticate}

Quotes are typographic ones or plain ones, in any mixture; a backslash stands before a quote or a backslash that is
meant itself. Line ends mean nothing.

A file may hold a password, and if a quote is missing, any of its words may be a part of that. So a message about a
mistake has the line, the signs of the form, and known names; other words of the file are never repeated.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

_SINGLE: Final = "'\u2018\u2019\u201a\u201b"
_DOUBLE: Final = '"\u201c\u201d\u201e\u201f'
_QUOTES: Final = _SINGLE + _DOUBLE
_TOKEN: Final = re.compile(
    rf"(?P<space>\s+)"
    rf"|(?P<sign>[={{}},:])"
    rf"|[{_SINGLE}](?P<single>(?:\\[\\{_SINGLE}]|[^{_SINGLE}\n])*)[{_SINGLE}]"
    rf"|[{_DOUBLE}](?P<double>(?:\\[\\{_DOUBLE}]|[^{_DOUBLE}\n])*)[{_DOUBLE}]"
    rf"|(?P<word>[^\s={{}},:{_QUOTES}]+)"
)
_ESCAPED: Final = re.compile(rf"\\([\\{_QUOTES}])")
_END: Final = ""

#: Sections and their settings. Modules are qClient's own plug-ins, of any name.
KNOWN: Final[dict[str, tuple[str, ...]]] = {
    "Modules": (),
    "Presentation": ("Protocol", "Version", "Format"),
    "Session": ("Protocol", "Host", "Port", "Certificate", "CA_Cert", "Public", "Private", "Authenticate"),
}
_NAMES: Final = frozenset({*KNOWN, *(name for names in KNOWN.values() for name in names)})


class QclientSyntaxError(Exception):
    """A mistake in the file; the text says the line, what is wrong, and what to do."""

    def __init__(self, line: int, words: str) -> None:
        super().__init__(f"{line}: {words}")


class QclientSetting(NamedTuple):
    """``name=value:value``, or a name alone, which has no values."""

    name: str
    line: int
    values: tuple[str, ...]


class Section(NamedTuple):
    """``name={setting, setting}``, its settings by name."""

    name: str
    line: int
    settings: dict[str, QclientSetting]


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


def parse(text: str) -> dict[str, Section]:
    """Return the sections of a file by name. Raises QclientSyntaxError for the first mistake."""
    return _Parser(text).sections()


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text.removeprefix("\ufeff"))
        self._next = next(self._tokens)

    def sections(self) -> dict[str, Section]:
        found: dict[str, Section] = {}
        while self._next.text != _END or self._next.kind != "end":
            name = self._word("a section, as Session={...}")
            section = as_printed(name.text, "a section")
            self._sign("=", f"after {section}")
            self._sign("{", f"after {section}=")
            if name.text in found:
                raise QclientSyntaxError(name.line, f"{section} stands twice; leave one out")
            found[name.text] = Section(name.text, name.line, self._settings(section))
            if not self._skip(",") and self._next.kind != "end":
                raise QclientSyntaxError(self._next.line, f"{_seen(self._next)} instead of a comma or the end")
        return found

    def _settings(self, section: str) -> dict[str, QclientSetting]:
        found: dict[str, QclientSetting] = {}
        while not self._skip("}"):
            name = self._word(f"a setting of {section}")
            setting = as_printed(name.text, "a setting")
            if name.text in found:
                raise QclientSyntaxError(name.line, f"{section}: {setting} stands twice; leave one out")
            values: list[str] = []
            if self._skip("="):
                values.append(self._value(section, setting))
                while self._skip(":"):
                    values.append(self._value(section, setting))
            found[name.text] = QclientSetting(name.text, name.line, tuple(values))
            if not self._skip(",") and self._next.text != "}":
                words = f"{section}: {_seen(self._next)} behind {setting}; a comma or }} should be there"
                raise QclientSyntaxError(self._next.line, words)
        return found

    def _word(self, what: str) -> _Token:
        if self._next.kind != "word":
            raise QclientSyntaxError(self._next.line, f"{_seen(self._next)} instead of {what}")
        return self._advance()

    def _value(self, section: str, setting: str) -> str:
        if self._next.kind not in {"word", "text"}:
            words = f"{section}: {setting}: {_seen(self._next)} instead of a value; write one there, in quotes"
            raise QclientSyntaxError(self._next.line, words)
        return self._advance().text

    def _sign(self, sign: str, place: str) -> None:
        if not self._skip(sign):
            raise QclientSyntaxError(self._next.line, f"{_seen(self._next)} {place}; {sign} should be there")

    def _skip(self, sign: str) -> bool:
        found = self._next.kind == "sign" and self._next.text == sign
        if found:
            self._advance()
        return found

    def _advance(self) -> _Token:
        token, self._next = self._next, next(self._tokens, self._next)
        return token


def _tokens(text: str) -> Iterator[_Token]:
    position, line = 0, 1
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise QclientSyntaxError(line, "a quote is opened and not closed on the same line; close it")
        kind = str(match.lastgroup)
        if kind in {"single", "double"}:
            yield _Token("text", _ESCAPED.sub(r"\1", match[kind]), line)
        elif kind != "space":
            yield _Token(kind, match[kind], line)
        line += match[0].count("\n")
        position = match.end()
    yield _Token("end", _END, line)


def as_printed(name: str, otherwise: str) -> str:
    """Return a name as a message may print it: a known name as it is, since any other may be a part of a password."""
    return name if name in _NAMES else otherwise


def _seen(token: _Token) -> str:
    """Describe a token without repeating a part of a password."""
    if token.kind == "end":
        return "the file ends"
    if token.kind == "text":
        return "a text in quotes stands"
    return f"{token.text!r} stands" if token.kind == "sign" or token.text in _NAMES else "a word stands"
