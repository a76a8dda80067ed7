"""The check that a listener would accept a client's certificate, without a handshake."""

from collections.abc import Sequence
from typing import Final

from cryptography import x509
from OpenSSL import SSL, crypto

_lib: Final = SSL._lib  # type: ignore[attr-defined]  # noqa: SLF001 - pyOpenSSL has no call for the purpose of a store


def verify_client(context: SSL.Context, chain: Sequence[x509.Certificate]) -> tuple[str, list[x509.Certificate]]:
    """Verify a client's certificate as a handshake with this server context would.

    ``chain`` begins with the client's own certificate; the others may help to lead to a CA. The context must be one of
    its own: the check changes it. Return why the certificate is refused, or "" and its chain, the root last.
    """
    leaf, *others = (crypto.X509.from_cryptography(certificate) for certificate in chain)
    store = context.get_cert_store()
    if store is None:
        return "the listener has no CA", []
    _lib.X509_STORE_set_purpose(store._store, _lib.X509_PURPOSE_SSL_CLIENT)  # noqa: SLF001
    try:
        verified = crypto.X509StoreContext(store, leaf, others).get_verified_chain()
    except crypto.X509StoreContextError as error:
        return str(error), []
    return "", [each.to_cryptography() for each in verified]
