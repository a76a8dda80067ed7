"""The proxies of the comparison: which are installed, in which version, and the command lines that run them."""

import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kmip_lab.compare import configurations
from kmip_lab.compare.configurations import ProxySettings

GATEWAY, HAPROXY, NGINX = "gateway", "haproxy", "nginx"
_WITH_WORKERS: Final = f"{GATEWAY}-"
#: The gateway with compiled hot modules.
COMPILED: Final = "gateway-compiled"
#: No proxy at all.
DIRECT: Final = "direct"
#: The command that installs both on Debian and Ubuntu. Their services are not needed, and may be stopped.
INSTALL: Final = "apt-get install -y --no-install-recommends haproxy nginx-light libnginx-mod-stream"
#: Directories of Debian that are not on every user's path.
_DIRECTORIES: Final = "/usr/local/sbin:/usr/sbin:/sbin"
_MODULES: Final = "/usr/lib/nginx/modules"


@dataclass(frozen=True)
class CommandLines:
    """The command line that runs a proxy in the foreground, and the one that only checks its configuration."""

    run: list[str]
    check: list[str]


def _gateway(settings: ProxySettings) -> CommandLines:
    file = _write(settings, "toml", configurations.gateway(settings))
    command = _gateway_command(settings.package)
    return CommandLines([*command, "run", file], [*command, "check", file])


def _gateway_command(package: Path | None) -> list[str]:
    """Return the command of the gateway, or of the one whose package is in this directory."""
    if package is None:
        return [sys.executable, "-m", "gateway"]
    return ["env", f"PYTHONPATH={package}", sys.executable, "-P", "-m", "gateway"]


def _haproxy(settings: ProxySettings) -> CommandLines:
    for name in ("server", "gateway-client"):
        pair = settings.files.directory / f"{name}-pair.pem"
        pair.touch(mode=0o600)
        pair.write_bytes(b"".join((settings.files.directory / f"{name}.{end}").read_bytes() for end in ("pem", "key")))
    command = [_found("haproxy") or "haproxy", "-f", _write(settings, "cfg", configurations.haproxy(settings))]
    return CommandLines([*command, "-db"], [*command, "-c"])


def _nginx(settings: ProxySettings) -> CommandLines:
    file = _write(settings, "conf", configurations.nginx(settings, _stream_module(_nginx_build()) or ""))
    command = [_found("nginx") or "nginx", "-p", str(settings.files.directory), "-e", "stderr", "-c", file]
    return CommandLines(command, [*command, "-t"])


def _write(settings: ProxySettings, ending: str, text: str) -> str:
    file = settings.files.directory / f"proxy-{settings.front.port}.{ending}"
    file.write_text(text)
    return str(file)


#: The command lines of each proxy, in the order in which proxies are shown.
PROXIES: Final[dict[str, Callable[[ProxySettings], CommandLines]]] = {
    GATEWAY: _gateway,
    COMPILED: _gateway,
    HAPROXY: _haproxy,
    NGINX: _nginx,
}


def gateway_name(tls_workers: int) -> str:
    """Return the name of a gateway with so many TLS workers: ``gateway`` without, ``gateway-2`` with two."""
    return f"{_WITH_WORKERS}{tls_workers}" if tls_workers else GATEWAY


def program_name(name: str) -> str:
    """Return the key in PROXIES of a name: that of a gateway with TLS workers is the gateway's."""
    return GATEWAY if tls_workers(name) else name


def tls_workers(name: str) -> int:
    """Return how many TLS workers the proxy of this name has: 0 for all but a gateway with TLS workers."""
    number = name.removeprefix(_WITH_WORKERS)
    return int(number) if number.isdecimal() else 0


def build(package: Path) -> str:
    """Return what the gateway in this directory says of its version and build; empty if it does not run."""
    return _output([*_gateway_command(package), "--version"]).strip()


def missing(name: str) -> str | None:
    """Return why a proxy can't be run here, or None if it can."""
    if name == HAPROXY and _found("haproxy") is None:
        return "HAProxy is not installed"
    if name == NGINX and _found("nginx") is None:
        return "nginx is not installed"
    if name == NGINX and _stream_module(_nginx_build()) is None:
        return "nginx is installed without its stream module"
    return None


def version(name: str) -> str:
    """Return the version of HAProxy or nginx, and of the OpenSSL that it runs on, as the program prints them."""
    if name == HAPROXY:
        said = _output([_found("haproxy") or "haproxy", "-vv"])
        number, library = r"HAProxy version (\S+)", r"Running on OpenSSL version : OpenSSL (\S+)"
    else:
        said = _nginx_build()
        number, library = r"nginx/(\S+)", r"(?:running|built) with OpenSSL [^(]*?(\S+) \d+ \w+ \d+\)?$"
    found = [re.search(pattern, said, re.MULTILINE) for pattern in (number, library)]
    return f"{name} {found[0][1] if found[0] else '?'}, OpenSSL {found[1][1] if found[1] else '?'}"


def interpreter() -> str:
    """Return the version of the Python that the gateway runs on, and how it was built."""
    options = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    built = f"{platform.python_compiler()}, {platform.python_build()[1]}"
    return f"Python {platform.python_version()} ({_build(options)}; {built})"


def _build(options: str) -> str:
    """Return whether Python was optimised by a profile, as far as the options of its build say so.

    Debian and Ubuntu do that without the option, by a make target of their own; their builds are known by the
    directory of their wheels.
    """
    if "--enable-optimizations" in options:
        return "optimised by a profile"
    return "Debian's build" if "=/usr/share/python-wheels" in options else "without --enable-optimizations"


def _nginx_build() -> str:
    program = _found("nginx")
    return "" if program is None else _output([program, "-V"])


def _stream_module(build: str) -> str | None:
    """Return the line that loads the stream module: empty if it is built in, None if it is not installed."""
    if re.search(r"--with-stream(\s|$)", build):
        return ""
    found = re.search(r"--modules-path=(\S+)", build)
    file = Path(found[1] if found else _MODULES) / "ngx_stream_module.so"
    return f"load_module {file};" if file.exists() else None


def _found(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path=_DIRECTORIES)


def _output(command: list[str]) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - found on the path
    return ended.stdout + ended.stderr
