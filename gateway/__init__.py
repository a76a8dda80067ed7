"""A load-balancing KMIP proxy that pools mutual-TLS sessions to key managers."""

import os
from pathlib import Path

_VARIABLE = "OPENSSL_CONF"


def _configure_openssl() -> None:
    """Have OpenSSL read ``openssl.cnf`` of this package, unless the environment names another configuration.

    OpenSSL reads its configuration once, at the first import of cryptography's binding; pyOpenSSL has no call for these
    settings. The variable is removed again: programs that this process starts have a configuration of their own.
    """
    if _VARIABLE in os.environ:
        return
    os.environ[_VARIABLE] = str(Path(__file__).with_name("openssl.cnf"))
    try:
        import cryptography.hazmat.bindings._rust  # noqa: F401, PLC0415
    finally:
        del os.environ[_VARIABLE]


_configure_openssl()
