"""Read a Target from a qClient configuration file, and report mistakes in its settings."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from gateway.config import Address
from gateway.errors import ConfigError
from gateway.kmip.messages import Version
from kmip_lab.speed.qclient_syntax import KNOWN, QclientSetting, QclientSyntaxError, Section, as_printed, parse
from kmip_lab.speed.target import KNOWN_VERSIONS, VERSIONS, Target

_DEFAULT_PORT: Final = "5696"  # assigned by IANA for KMIP

#: The values that can be measured; any other value is a mistake.
_CHOICES: Final = {
    ("Presentation", "Protocol"): ("KMIP",),
    ("Presentation", "Format"): ("TTLV",),
    ("Session", "Protocol"): ("SSL", "TLS"),
}


def read(path: Path) -> Target:
    """Return the target of a file. The files that it names are relative to its directory.

    Raises ConfigError, a line for each mistake: file and line, section and setting, the mistake, and what to do.
    """
    try:
        sections = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; give a qClient configuration file"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not UTF-8; write it anew in that encoding"]) from None
    except QclientSyntaxError as mistake:
        raise ConfigError([f"{path}:{mistake}"]) from None
    reader = _Reader(path, sections)
    target = reader.target()
    if reader.mistakes or target is None:
        raise ConfigError(reader.mistakes)
    return target


class _File(NamedTuple):
    """A file, its password, and the place in the configuration file at which it is named."""

    path: Path
    password: str | None
    place: str


class _Reader:
    """Reads the sections of one file and collects mistakes. A mistake never repeats a value of the file."""

    def __init__(self, path: Path, sections: dict[str, Section]) -> None:
        self.mistakes: list[str] = []
        self._path = path
        self._sections = sections

    def target(self) -> Target | None:
        """Return the target; None if there are mistakes."""
        self._check_known()
        versions = self._versions()
        if "Session" not in self._sections:
            if not self.mistakes:
                self.mistakes.append(f"{self._path}: Session is missing; add Session={{...}}")
            return None
        address = self._address()
        certificate = self._file("Certificate", instead="Public")
        private_key, ca = self._file("Private"), self._file("CA_Cert")
        if address is None or certificate is None or private_key is None or ca is None:
            return None
        return Target(
            (address,),
            certificate.path,
            private_key.path,
            ca.path,
            password=private_key.password,
            versions=versions,
            named_by={"certificate": certificate.place, "private_key": private_key.place, "ca": ca.place},
        )

    def _check_known(self) -> None:
        for section in self._sections.values():
            if section.name not in KNOWN:
                self._report(section.line, _unknown(section.name, "section", KNOWN))
                continue
            known = KNOWN[section.name]
            for setting in section.settings.values() if known else ():
                if setting.name not in known:
                    self._report(setting.line, f"{section.name}: {_unknown(setting.name, 'setting', known)}")
        for (section_name, name), choices in _CHOICES.items():
            found = self._setting(section_name, name)
            if found is not None and (len(found.values) != 1 or found.values[0].upper() not in choices):
                must = f"must be {' or '.join(choices)}; nothing else is supported"
                self._report(found.line, f"{section_name}: {name}: {must}")

    def _versions(self) -> tuple[Version, ...]:
        setting = self._setting("Presentation", "Version")
        if setting is None:
            return VERSIONS
        versions: list[Version] = []
        for text in setting.values or ("",):
            found = re.fullmatch(r"([0-9])\.([0-9])", text)
            version = (int(found[1]), int(found[2])) if found else (0, 0)
            if version not in KNOWN_VERSIONS:
                spoken = ", ".join("{}.{}".format(*known) for known in sorted(KNOWN_VERSIONS))
                words = f"Presentation: Version: number {len(versions) + 1} is not supported; choose from {spoken}"
                self._report(setting.line, words)
            versions.append(version)
        return tuple(versions)

    def _address(self) -> Address | None:
        host, port = self._text("Host"), self._text("Port", _DEFAULT_PORT)
        if host is None or port is None:
            return None
        if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
            self._report(self._line("Port"), "Session: Port: is no port; write a number from 1 to 65535")
            return None
        try:
            return Address.parse(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except ValueError:
            self._report(self._line("Host"), "Session: Host: is no host name, and no IP address; write one")
            return None

    def _text(self, name: str, default: str | None = None) -> str | None:
        setting = self._setting("Session", name)
        if setting is None:
            if default is None:
                self._missing(name)
            return default
        if len(setting.values) != 1 or not setting.values[0]:
            words = "must have one value; put it in quotes if it holds a colon"
            self._report(setting.line, f"Session: {name}: {words}")
            return None
        return setting.values[0]

    def _file(self, name: str, *, instead: str | None = None) -> _File | None:
        """Return the file of a setting, or of the setting ``instead`` if ``name`` is left out."""
        setting = self._setting("Session", name) or (self._setting("Session", instead) if instead else None)
        if setting is None:
            self._missing(name)
            return None
        label = f"Session: {setting.name}"
        form = f"write {setting.name}=PEM:'file'" + (" or PEM:'file':'password'" if name == "Private" else "")
        if len(setting.values) not in {2, 3 if name == "Private" else 2}:
            self._report(setting.line, f"{label}: is not of this form; {form}")
            return None
        path = self._path.parent / setting.values[1]
        if setting.values[0].upper() != "PEM":
            self._report(
                setting.line, f"{label}: is not of the kind PEM, and only that is read: convert it, and {form}"
            )
        elif not path.is_file():
            here = self._path.parent
            self._report(setting.line, f"{label}: its file is not in {here}, or no file; {form}, relative to {here}")
        else:
            password = setting.values[2] if len(setting.values) == 3 else None
            return _File(path, password, f"{self._path}:{setting.line}: {label}")
        return None

    def _setting(self, section: str, name: str) -> QclientSetting | None:
        found = self._sections.get(section)
        return None if found is None else found.settings.get(name)

    def _line(self, name: str) -> int:
        """Return the line of a setting of Session, or that of Session if it has no such setting."""
        section = self._sections["Session"]
        setting = section.settings.get(name)
        return section.line if setting is None else setting.line

    def _missing(self, name: str) -> None:
        self._report(self._line(name), f"Session: {name} is missing; add it")

    def _report(self, line: int, words: str) -> None:
        self.mistakes.append(f"{self._path}:{line}: {words}")


def _unknown(name: str, what: str, known: Iterable[str]) -> str:
    """Return a message for an unknown name. The name is repeated only if it is a known name but for capital letters."""
    meant = [each for each in known if each.casefold() == name.casefold()]
    if meant:
        return f"{name} is not known; write it as {meant[0]}"
    return f"{as_printed(name, f'a {what} on this line')} is not known; there are {', '.join(known)}"
