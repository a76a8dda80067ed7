"""The check that a listener would accept a client's certificate, without a handshake."""

from collections.abc import Sequence
from typing import Final

from cryptography import x509
from OpenSSL import SSL, crypto

_lib: Final = SSL._lib  # type: ignore[attr-defined]  # noqa: SLF001 - pyOpenSSL has no call for the purpose of a store


def client_refusal(context: SSL.Context, chain: Sequence[x509.Certificate]) -> str:
    """Return why a handshake with this server context would refuse a client's certificate; "" if it would not.

    ``chain`` begins with the client's own certificate; the others may help to lead to a CA. The context must be one of
    its own: the check changes it.
    """
    leaf, *others = (crypto.X509.from_cryptography(certificate) for certificate in chain)
    store = context.get_cert_store()
    if store is None:
        return "the listener has no CA"
    _lib.X509_STORE_set_purpose(store._store, _lib.X509_PURPOSE_SSL_CLIENT)  # noqa: SLF001
    try:
        crypto.X509StoreContext(store, leaf, others).verify_certificate()
    except crypto.X509StoreContextError as error:
        return str(error)
    return ""
