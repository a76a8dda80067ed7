"""From a qClient configuration file to a Target: what its settings mean, and what may be wrong with them."""

import re
from pathlib import Path
from typing import Final

from gateway.config import Address
from gateway.errors import ConfigError
from gateway.kmip.messages import Version
from gateway.lab.speed.qclient_syntax import MistakeError, Section, Setting, parse
from gateway.lab.speed.target import KNOWN_VERSIONS, VERSIONS, Target

_DEFAULT_PORT: Final = "5696"  # assigned by IANA for KMIP

#: Sections and their settings; a file may leave out all but those of _NEEDED. Modules are qClient's own plug-ins.
_KNOWN: Final = {
    "Modules": None,
    "Presentation": ("Protocol", "Version", "Format"),
    "Session": ("Protocol", "Host", "Port", "Certificate", "CA_Cert", "Public", "Private", "Authenticate"),
}
#: What can be told of a server that is measured here; anything else could not be done.
_CHOICES: Final = {
    ("Presentation", "Protocol"): ("KMIP",),
    ("Presentation", "Format"): ("TTLV",),
    ("Session", "Protocol"): ("SSL", "TLS"),
}


def read(path: Path) -> Target:
    """The target of a file; the files that it names are relative to its directory.

    Raises ConfigError, a line for each mistake: file and line, section and setting, what is wrong, what to do.
    """
    try:
        sections = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; give a qClient configuration file"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not UTF-8; write it anew in that encoding"]) from None
    except MistakeError as mistake:
        raise ConfigError([f"{path}:{mistake}"]) from None
    reader = _Reader(path, sections)
    target = reader.target()
    if reader.mistakes or target is None:
        raise ConfigError(reader.mistakes)
    return target


class _Reader:
    """Reads one file's sections, and collects mistakes on the way."""

    def __init__(self, path: Path, sections: dict[str, Section]) -> None:
        self.mistakes: list[str] = []
        self._path = path
        self._sections = sections

    def target(self) -> Target | None:
        """The target; where it is None, there are mistakes."""
        self._check_known()
        versions = self._versions()
        address = self._address()
        certificate, _ = self._file("Certificate", instead="Public")
        private_key, password = self._file("Private")
        ca, _ = self._file("CA_Cert")
        if address is None or certificate is None or private_key is None or ca is None:
            return None
        return Target((address,), certificate, private_key, ca, password=password, versions=versions)

    def _check_known(self) -> None:
        for section in self._sections.values():
            if section.name not in _KNOWN:
                self._blame(section.line, section.name, f"is not known; there are {', '.join(_KNOWN)}")
                continue
            known = _KNOWN[section.name]
            for setting in section.settings.values() if known else ():
                if known and setting.name not in known:
                    where = f"{section.name}: {setting.name}"
                    self._blame(setting.line, where, f"is not known; there are {', '.join(known)}")
        for (section_name, name), choices in _CHOICES.items():
            found = self._setting(section_name, name)
            if found is not None and (len(found.values) != 1 or found.values[0].upper() not in choices):
                self._blame(
                    found.line, f"{section_name}: {name}", f"must be {' or '.join(choices)}; nothing else is spoken"
                )

    def _versions(self) -> tuple[Version, ...]:
        setting = self._setting("Presentation", "Version")
        if setting is None:
            return VERSIONS
        versions = []
        for text in setting.values or ("",):
            found = re.fullmatch(r"([0-9])\.([0-9])", text)
            version = (int(found[1]), int(found[2])) if found else (0, 0)
            if version not in KNOWN_VERSIONS:
                spoken = ", ".join("{}.{}".format(*one) for one in sorted(KNOWN_VERSIONS))
                self._blame(setting.line, "Presentation: Version", f"{text!r} is not spoken here; choose from {spoken}")
            versions.append(version)
        return tuple(versions)

    def _address(self) -> Address | None:
        host, port = self._text("Host"), self._text("Port", _DEFAULT_PORT)
        if host is None or port is None:
            return None
        written = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            return Address.parse(written)
        except ValueError as error:
            setting = self._setting("Session", "Host")
            self._blame(setting.line if setting else 1, "Session: Host and Port", f"{written!r} {error}")
            return None

    def _text(self, name: str, default: str | None = None) -> str | None:
        setting = self._setting("Session", name)
        if setting is None:
            if default is None:
                self._missing(name)
            return default
        if len(setting.values) != 1 or not setting.values[0]:
            self._blame(
                setting.line, f"Session: {name}", "must have one value; put it in quotes where it holds a colon"
            )
            return None
        return setting.values[0]

    def _file(self, name: str, *, instead: str | None = None) -> tuple[Path | None, str | None]:
        """A file, and its password where one is given. ``instead`` is taken where ``name`` is left out."""
        setting = self._setting("Session", name) or (self._setting("Session", instead) if instead else None)
        if setting is None:
            self._missing(name)
            return None, None
        where = f"Session: {setting.name}"
        form = f"write {setting.name}=PEM:'file'" + (" or PEM:'file':'password'" if name == "Private" else "")
        if len(setting.values) not in {2, 3 if name == "Private" else 2}:
            self._blame(setting.line, where, f"is not of this form; {form}")
            return None, None
        kind, file = setting.values[0], self._path.parent / setting.values[1]
        if kind.upper() != "PEM":
            self._blame(setting.line, where, f"is of kind {kind!r}; only PEM is read: convert it, and {form}")
        elif not file.is_file():
            self._blame(setting.line, where, f"{file} is not there, or no file; give the path of a PEM file")
        else:
            return file, setting.values[2] if len(setting.values) == 3 else None
        return None, None

    def _setting(self, section: str, name: str) -> Setting | None:
        found = self._sections.get(section)
        return None if found is None else found.settings.get(name)

    def _missing(self, name: str) -> None:
        section = self._sections.get("Session")
        self._blame(section.line if section else 1, f"Session: {name}", "is missing; add it")

    def _blame(self, line: int, where: str, words: str) -> None:
        self.mistakes.append(f"{self._path}:{line}: {where}: {words}")
