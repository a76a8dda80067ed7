"""The names in a certificate, byte for byte as its issuer encoded them (RFC 5280 section 4.1).

``cryptography`` gives names as values, and may encode a value in another way than the issuer did. A certificate that
the gateway mints must have the very bytes of the client's.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

_SEQUENCE: Final = 0x30
_INTEGER: Final = 0x02
_BOOLEAN: Final = 0x01
_OCTETS: Final = 0x04
_OID: Final = 0x06
_VERSION: Final = 0xA0
_EXTENSIONS: Final = 0xA3
_SUBJECT_ALTERNATIVE_NAME: Final = bytes.fromhex("551d11")  # 2.5.29.17
_LONG: Final = 0x80  # in the first byte of a length: the number of bytes that follow
_MOST_BYTES: Final = 4  # of a length


class Names(NamedTuple):
    """DER of issuer, subject and subject alternative names; ``alternative_names`` is None if there are none."""

    issuer: bytes
    subject: bytes
    alternative_names: bytes | None
    is_critical: bool

    @property
    def is_empty(self) -> bool:
        """True if the certificate names nobody."""
        return len(self.subject) <= len(b"\x30\x00") and self.alternative_names is None


class _Element(NamedTuple):
    """A tag, the whole encoding, and the contents."""

    tag: int
    whole: bytes
    contents: bytes


def names_of(der: bytes) -> Names:
    """Return the names in a certificate. Raises ValueError if it is not DER, or has the extension twice."""
    (certificate,) = _elements(der, 1)
    to_be_signed = next(iter(_elements(certificate.contents)), None)
    if to_be_signed is None:
        raise ValueError("the certificate is empty")
    fields = [field for field in _elements(to_be_signed.contents) if field.tag != _VERSION]
    # serial number, signature algorithm, issuer, validity, subject, public key
    if len(fields) < 6 or [field.tag for field in fields[:6]] != [_INTEGER, *[_SEQUENCE] * 5]:
        raise ValueError("the certificate does not have the fields of a certificate")
    found = [names for field in fields[6:] if field.tag == _EXTENSIONS for names in _alternative_names(field.contents)]
    if len(found) > 1:
        raise ValueError("the certificate has subject alternative names twice")
    names, is_critical = found[0] if found else (None, False)
    return Names(fields[2].whole, fields[4].whole, names, is_critical)


def _alternative_names(contents: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield the value of each extension with subject alternative names, and True if the extension is critical."""
    for extensions in _elements(contents):
        for extension in _elements(extensions.contents):
            parts = list(_elements(extension.contents))
            if parts and parts[0].tag == _OID and parts[0].contents == _SUBJECT_ALTERNATIVE_NAME:
                if parts[-1].tag != _OCTETS:
                    raise ValueError("the subject alternative names have no value")
                is_critical = any(part.tag == _BOOLEAN and part.contents == b"\xff" for part in parts)
                yield parts[-1].contents, is_critical


def _elements(data: bytes, number: int | None = None) -> list[_Element]:
    """Return the elements that follow each other in ``data``; exactly ``number`` if that is given."""
    found = []
    position = 0
    while position < len(data):
        begin, tag = position, data[position]
        length, position = _length(data, position + 1)
        if tag & 0x1F == 0x1F or position + length > len(data):
            raise ValueError("the certificate is not DER")
        found.append(_Element(tag, data[begin : position + length], data[position : position + length]))
        position += length
    if number is not None and len(found) != number:
        raise ValueError("the certificate is not DER")
    return found


def _length(data: bytes, position: int) -> tuple[int, int]:
    """Return a length and the position behind it."""
    if position >= len(data):
        raise ValueError("the certificate is not DER")
    first = data[position]
    if first < _LONG:
        return first, position + 1
    end = position + 1 + (first & ~_LONG)
    if first == _LONG or first & ~_LONG > _MOST_BYTES or end > len(data):
        raise ValueError("the certificate is not DER")
    return int.from_bytes(data[position + 1 : end], "big"), end
