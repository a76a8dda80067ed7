"""The gateway's own Credential in a request header: in its place, in every version; read by PyKMIP as well."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kmip.core import enums

from gateway.kmip import compose, ttlv
from gateway.kmip.authentication import HeaderCredential, device, username_and_password
from gateway.kmip.decode import decode_request
from gateway.kmip.messages import Version
from gateway.kmip.spec import CredentialType, Operation, Tag
from tests.kit import pykmip_peer
from tests.kit.messages import VERSIONS, WITHOUT_COUNT, authentication, credential, ticket_credential

SECRET = "not-to-be-seen"
OWN = username_and_password("app-1", SECRET.encode())

#: The fields of a request header, in the order of 1.4 section 7.2 and 2.1 section 8.2.
BEFORE = {
    Tag.MAXIMUM_RESPONSE_SIZE: ttlv.integer(Tag.MAXIMUM_RESPONSE_SIZE, 65536),
    Tag.CLIENT_CORRELATION_VALUE: ttlv.text(Tag.CLIENT_CORRELATION_VALUE, "a"),
    Tag.SERVER_CORRELATION_VALUE: ttlv.text(Tag.SERVER_CORRELATION_VALUE, "bb"),
    Tag.ASYNCHRONOUS_INDICATOR: ttlv.boolean(Tag.ASYNCHRONOUS_INDICATOR, False),
    Tag.ATTESTATION_CAPABLE_INDICATOR: ttlv.boolean(Tag.ATTESTATION_CAPABLE_INDICATOR, True),
    Tag.ATTESTATION_TYPE: ttlv.enumeration(Tag.ATTESTATION_TYPE, 1),
}
AFTER = {
    Tag.BATCH_ERROR_CONTINUATION_OPTION: ttlv.enumeration(Tag.BATCH_ERROR_CONTINUATION_OPTION, 1),
    Tag.BATCH_ORDER_OPTION: ttlv.boolean(Tag.BATCH_ORDER_OPTION, True),
    Tag.TIME_STAMP: ttlv.date_time(Tag.TIME_STAMP, 1_700_000_000),
}
ASKS = [compose.Ask(Operation.GET, ttlv.text(Tag.UNIQUE_IDENTIFIER, "1"), bytes([number])) for number in range(3)]


def header_tags(frame: bytes) -> list[int]:
    """Return the tags of the fields in a request's header, in their order."""
    (head, *_) = ttlv.walk(frame, 8, len(frame))
    return [field.tag for field in ttlv.walk(frame, head.start, head.end)]


@given(
    st.sampled_from([*VERSIONS, WITHOUT_COUNT]),
    st.sets(st.sampled_from(list(BEFORE))),
    st.sets(st.sampled_from(list(AFTER))),
    st.integers(1, 3),
    st.booleans(),
)
def test_authentication_stands_in_its_place(
    version: Version, before: set[Tag], after: set[Tag], items: int, brings_own: bool
) -> None:
    first = [field for tag, field in BEFORE.items() if tag in before]
    last = [field for tag, field in AFTER.items() if tag in after]
    own = [authentication(credential(CredentialType.USERNAME_AND_PASSWORD), ticket_credential(b"t"))] * brings_own
    request = decode_request(compose.encode_request(version, ASKS[:items], header=[*first, *own, *last]))

    changed = OWN.added_to(request)

    whole = compose.encode_request(version, ASKS[:items], header=[*first, OWN._encoded, *last])
    assert changed.frame == whole
    again = decode_request(whole)
    assert changed.fields == again.fields
    assert changed.version == version
    assert [item.unique_identifiers for item in changed.items] == [[b"1"]] * items
    assert header_tags(whole).count(Tag.AUTHENTICATION) == 1
    assert request.frame == compose.encode_request(version, ASKS[:items], header=[*first, *own, *last])


@pytest.mark.parametrize("version", pykmip_peer.VERSIONS, ids=lambda version: f"{version[0]}.{version[1]}")
def test_pykmip_reads_user_name_and_password(version: Version) -> None:
    frame = pykmip_peer.write_request(version, [pykmip_peer.REQUESTS["get"]] * 2, [b"1", b"2"])
    read = pykmip_peer.read_request(OWN.added_to(decode_request(frame)).frame)
    (found,) = read.request_header.authentication.credentials
    assert found.credential_type == enums.CredentialType.USERNAME_AND_PASSWORD
    assert (found.credential_value.username, found.credential_value.password) == ("app-1", SECRET)
    assert len(read.batch_items) == 2


def test_a_credential_is_encoded_as_pykmip_encodes_it() -> None:
    written = pykmip_peer.write_request(
        (1, 2), [pykmip_peer.REQUESTS["get"]], authentication=pykmip_peer.password("app-1", SECRET)
    )
    plain = decode_request(pykmip_peer.write_request((1, 2), [pykmip_peer.REQUESTS["get"]]))
    assert OWN.added_to(plain).frame == written


def test_pykmip_reads_a_device() -> None:
    names = {
        "serial_number": "17",
        "identifier": "disk",
        "network_identifier": "10.1.0.7",
        "machine_identifier": "host",
        "media_identifier": "tape",
    }
    own = device(password=SECRET.encode(), **names)
    frame = pykmip_peer.write_request((1, 2), [pykmip_peer.REQUESTS["get"]])
    read = pykmip_peer.read_request(own.added_to(decode_request(frame)).frame)
    (found,) = read.request_header.authentication.credentials
    assert found.credential_type == enums.CredentialType.DEVICE
    value = found.credential_value
    assert value.password == SECRET
    assert [
        value.device_serial_number,
        value.device_identifier,
        value.network_identifier,
        value.machine_identifier,
        value.media_identifier,
    ] == list(names.values())


def test_names_of_a_device_that_are_empty_are_left_out() -> None:
    frame = device(serial_number="17").added_to(decode_request(compose.discover_versions())).frame
    assert b"17" in frame
    for tag in (Tag.PASSWORD, Tag.DEVICE_IDENTIFIER, Tag.MEDIA_IDENTIFIER):
        assert int(tag).to_bytes(3, "big") + b"\x07" not in frame


@pytest.mark.parametrize("own", [OWN, device(serial_number="17", password=SECRET.encode())])
def test_repr_shows_nothing_of_a_credential(own: HeaderCredential) -> None:
    assert repr(own) == "<HeaderCredential>"
    assert SECRET not in repr(own.added_to(decode_request(compose.discover_versions())))
