"""Authentication: the gateway's own KMIP Credential in the header of requests (1.4 sections 2.1.2 and 6.6).

The fields of a request header have an order (1.4 section 7.2, 2.1 section 8.2), in which Authentication follows
Asynchronous Indicator and Attestation Type, and precedes Batch Error Continuation Option, Batch Order Option, Time
Stamp and Batch Count. Some key managers read the fields in this order only.
"""

import struct
from typing import Final

from gateway.kmip import ttlv
from gateway.kmip.messages import Request
from gateway.kmip.spec import CredentialType, ItemType, Tag

_SIZE: Final = ttlv.HEADER_SIZE
_AUTHENTICATION: Final = int(Tag.AUTHENTICATION)
_LATER: Final = tuple(
    int(tag) for tag in (Tag.BATCH_ERROR_CONTINUATION_OPTION, Tag.BATCH_ORDER_OPTION, Tag.TIME_STAMP, Tag.BATCH_COUNT)
)
_HEADER_BEGIN: Final = 2 * _SIZE  # position behind the heads of message and header
_HEADS: Final = struct.Struct(">IIII")
_MESSAGE: Final = ttlv.word(Tag.REQUEST_MESSAGE, ItemType.STRUCTURE)
_HEADER: Final = ttlv.word(Tag.REQUEST_HEADER, ItemType.STRUCTURE)


class HeaderCredential:
    """An encoded Authentication with one Credential. ``repr`` shows nothing of it."""

    __slots__ = ("_encoded",)

    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded

    def __repr__(self) -> str:
        return "<HeaderCredential>"

    def added_to(self, request: Request) -> Request:
        """Return the request with this Authentication, in place of its own if it has one.

        The items of the request are those of the original, with their positions in the original frame.
        """
        frame, fields, encoded = request.frame, request.fields, self._encoded
        own = fields.get(_AUTHENTICATION)
        header_end = _HEADER_BEGIN + int.from_bytes(frame[_HEADER_BEGIN - 4 : _HEADER_BEGIN], "big")
        if own is not None:
            begin, end = own[0] - _SIZE, own[1]
        else:  # before the first field that must follow
            begin = header_end
            for tag in _LATER:
                span = fields.get(tag)
                if span is not None and span[0] - _SIZE < begin:
                    begin = span[0] - _SIZE
            end = begin
        growth = len(encoded) - (end - begin)
        heads = _HEADS.pack(_MESSAGE, len(frame) - _SIZE + growth, _HEADER, header_end - _HEADER_BEGIN + growth)
        changed = heads + frame[_HEADER_BEGIN:begin] + encoded + frame[end:]
        moved = {tag: span if span[0] < begin else (span[0] + growth, span[1] + growth) for tag, span in fields.items()}
        moved[_AUTHENTICATION] = (begin + _SIZE, begin + len(encoded))
        return Request(changed, moved, request.version, request.items)


def username_and_password(username: str, password: bytes) -> HeaderCredential:
    """Return a Username and Password credential; the password is UTF-8."""
    return _credential(
        CredentialType.USERNAME_AND_PASSWORD, ttlv.text(Tag.USERNAME, username), _text(Tag.PASSWORD, password)
    )


def device(
    *,
    serial_number: str = "",
    password: bytes | None = None,
    identifier: str = "",
    network_identifier: str = "",
    machine_identifier: str = "",
    media_identifier: str = "",
) -> HeaderCredential:
    """Return a Device credential (since 1.1); names that are empty are left out."""
    return _credential(
        CredentialType.DEVICE,
        *_optional(Tag.DEVICE_SERIAL_NUMBER, serial_number),
        *(() if password is None else (_text(Tag.PASSWORD, password),)),
        *_optional(Tag.DEVICE_IDENTIFIER, identifier),
        *_optional(Tag.NETWORK_IDENTIFIER, network_identifier),
        *_optional(Tag.MACHINE_IDENTIFIER, machine_identifier),
        *_optional(Tag.MEDIA_IDENTIFIER, media_identifier),
    )


def _credential(kind: CredentialType, *value: bytes) -> HeaderCredential:
    credential = ttlv.structure(
        Tag.CREDENTIAL,
        ttlv.enumeration(Tag.CREDENTIAL_TYPE, kind),
        ttlv.structure(Tag.CREDENTIAL_VALUE, *value),
    )
    return HeaderCredential(ttlv.structure(Tag.AUTHENTICATION, credential))


def _optional(tag: Tag, value: str) -> tuple[bytes, ...]:
    return (ttlv.text(tag, value),) if value else ()


def _text(tag: Tag, value: bytes) -> bytes:
    return ttlv.text(tag, value.decode())
