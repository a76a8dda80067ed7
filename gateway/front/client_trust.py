"""Client trust: which clients of one listener are accepted after their handshake, and until when that is certain."""

import time
from typing import Final

from gateway.revocation import Chain, Chains, Trust, Verdict

_NEVER: Final = float("inf")


class ClientTrust:
    """The chains of a listener's clients, and the Trust that judges them.

    ``due`` is the earliest time (Unix s) at which a client that was accepted may not be accepted any more.
    """

    def __init__(self, trust: Trust) -> None:
        self._chains = Chains()
        self.trust = trust
        self.due = _NEVER

    def __repr__(self) -> str:
        return f"<ClientTrust: {self.trust!r}, {self._chains!r}>"

    def chain_of(self, certificate: bytes | None, issuers: tuple[bytes, ...] | None) -> Chain | None:
        """Return the verified chain of a client's certificate and its issuers, in DER.

        Without ``issuers`` (of a resumed session), return the chain of the full handshake, if it is known. Raises one
        of UNREADABLE_CERTIFICATE.
        """
        if certificate is None:
            return None
        return self._chains.resumed(certificate) if issuers is None else self._chains.verified(certificate, issuers)

    def refusal(self, chain: Chain | None) -> str:
        """Return why a client with this chain is not accepted now, as a key of REFUSALS, or ""."""
        verdict: Verdict = self.trust.judge(chain, time.time())
        if not verdict.refusal:
            self.due = min(self.due, verdict.until)
        return verdict.refusal
