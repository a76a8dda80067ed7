"""Access to the admin port: bearer tokens from a file, and clients' certificates, for /metrics.

/livez and /readyz answer everybody: the programs that ask them have no secret, and learn one word.
"""

import hashlib
import hmac
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from gateway.admin.answer import HttpAnswer

_CHALLENGE: Final = ("WWW-Authenticate", 'Bearer realm="kmip-gateway"')


class Access:
    """The needs of a reader of metrics: one of ``tokens``, if there are any, and a certificate, if one is needed."""

    def __init__(self, tokens: Sequence[str] = (), *, needs_certificate: bool = False) -> None:
        self._digests = [_digest(token) for token in tokens]
        self._needs_certificate = needs_certificate

    def refuse(self, authorization: str | None, *, has_certificate: bool) -> HttpAnswer | None:
        """Return the answer to a request that may not be served, or None.

        ``authorization`` is the header of that name (RFC 6750 section 2.1). ``has_certificate`` is True if the client
        has shown a certificate that the TLS handshake has verified.
        """
        if self._needs_certificate and not has_certificate:
            return HttpAnswer.of(HTTPStatus.FORBIDDEN, "a client certificate of admin.client_ca is needed")
        if self._digests and not self._is_known(authorization or ""):
            answer = HttpAnswer.of(HTTPStatus.UNAUTHORIZED, "a token of admin.token_file is needed")
            return answer._replace(headers=(_CHALLENGE,))
        return None

    def _is_known(self, authorization: str) -> bool:
        """Compare with every token, in a time that depends neither on the tokens nor on the place of a difference."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return False
        given = _digest(token.strip(" "))
        return sum([hmac.compare_digest(given, digest) for digest in self._digests]) > 0


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
