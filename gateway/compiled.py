"""Tell which build of the gateway runs: with compiled hot modules, or from the source alone."""

from typing import Final

from gateway.kmip import decode

#: "compiled" if the hot modules are shared libraries (``make wheel-compiled``), else "interpreted".
BUILD: Final = "interpreted" if decode.__file__.endswith(".py") else "compiled"
