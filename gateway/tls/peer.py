"""The peer's certificates as bytes (DER), straight from OpenSSL: pyOpenSSL makes five objects for each certificate."""

from typing import Any, Final

from OpenSSL import SSL

_ffi: Final = SSL._ffi  # type: ignore[attr-defined]  # noqa: SLF001 - see above
_lib: Final = SSL._lib  # type: ignore[attr-defined]  # noqa: SLF001
_NULL: Final = _ffi.NULL


def certificate_der(ssl: Any) -> bytes | None:
    """Return the certificate that the peer has shown, or in the full handshake before; None if there is none.

    ``ssl`` is OpenSSL's object of the connection.
    """
    certificate = _lib.SSL_get_peer_certificate(ssl)
    if certificate == _NULL:
        return None
    try:
        return _der_of(certificate)
    finally:
        _lib.X509_free(certificate)


def issuers_der(ssl: Any) -> tuple[bytes, ...]:
    """Return the CA certificates above the peer's, as a full handshake has verified them, the root last."""
    chain = _lib.SSL_get0_verified_chain(ssl)  # belongs to the connection
    if chain == _NULL:
        return ()
    return tuple([_der_of(_lib.sk_X509_value(chain, index)) for index in range(1, _lib.sk_X509_num(chain))])


def _der_of(certificate: Any) -> bytes:
    memory = _lib.BIO_new(_lib.BIO_s_mem())
    try:
        if _lib.i2d_X509_bio(memory, certificate) != 1:
            raise MemoryError
        start = _ffi.new("char **")
        size = _lib.BIO_get_mem_data(memory, start)
        return bytes(_ffi.unpack(start[0], size))
    finally:
        _lib.BIO_free(memory)
