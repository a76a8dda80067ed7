"""PyKMIP as a second implementation: its classes encode messages for the gateway, and decode the gateway's."""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from kmip.core import attributes, enums, objects, secrets
from kmip.core.factories.attributes import AttributeFactory
from kmip.core.messages import contents, messages, payloads
from kmip.core.misc import KeyFormatType
from kmip.core.utils import BytearrayStream

from gateway.kmip.messages import Version

#: The versions that PyKMIP speaks, as it names them.
VERSIONS: Final = {
    (1, 0): enums.KMIPVersion.KMIP_1_0,
    (1, 1): enums.KMIPVersion.KMIP_1_1,
    (1, 2): enums.KMIPVersion.KMIP_1_2,
    (1, 3): enums.KMIPVersion.KMIP_1_3,
    (1, 4): enums.KMIPVersion.KMIP_1_4,
    (2, 0): enums.KMIPVersion.KMIP_2_0,
}

KEY: Final = bytes(range(32))


class Speech(NamedTuple):
    """A payload of PyKMIP's, and its unique identifiers."""

    operation: Any
    payload: Callable[[], Any]
    identifiers: list[bytes]


def _template(tag: Any = enums.Tags.TEMPLATE_ATTRIBUTE) -> Any:
    create = AttributeFactory().create_attribute
    return objects.TemplateAttribute(
        attributes=[
            create(enums.AttributeType.CRYPTOGRAPHIC_ALGORITHM, enums.CryptographicAlgorithm.AES),
            create(enums.AttributeType.CRYPTOGRAPHIC_LENGTH, 256),
            create(enums.AttributeType.CRYPTOGRAPHIC_USAGE_MASK, [enums.CryptographicUsageMask.ENCRYPT]),
        ],
        tag=tag,
    )


def _key() -> Any:
    block = objects.KeyBlock(
        key_format_type=KeyFormatType(enums.KeyFormatType.RAW),
        key_value=objects.KeyValue(objects.KeyMaterial(KEY)),
        cryptographic_algorithm=attributes.CryptographicAlgorithm(enums.CryptographicAlgorithm.AES),
        cryptographic_length=attributes.CryptographicLength(256),
    )
    return secrets.SymmetricKey(block)


def _identifier(text: str) -> Any:
    return attributes.UniqueIdentifier(text)


REQUESTS: Final = {
    "create": Speech(
        enums.Operation.CREATE,
        lambda: payloads.CreateRequestPayload(enums.ObjectType.SYMMETRIC_KEY, _template()),
        [],
    ),
    "create key pair": Speech(
        enums.Operation.CREATE_KEY_PAIR,
        lambda: payloads.CreateKeyPairRequestPayload(_template(enums.Tags.COMMON_TEMPLATE_ATTRIBUTE)),
        [],
    ),
    "register": Speech(
        enums.Operation.REGISTER,
        lambda: payloads.RegisterRequestPayload(enums.ObjectType.SYMMETRIC_KEY, _template(), _key()),
        [],
    ),
    "get": Speech(enums.Operation.GET, lambda: payloads.GetRequestPayload("key-1"), [b"key-1"]),
    "locate": Speech(
        enums.Operation.LOCATE,
        lambda: payloads.LocateRequestPayload(
            maximum_items=3, object_group_member=enums.ObjectGroupMember.GROUP_MEMBER_FRESH
        ),
        [],
    ),
    "activate": Speech(
        enums.Operation.ACTIVATE, lambda: payloads.ActivateRequestPayload(_identifier("key-22")), [b"key-22"]
    ),
    "revoke": Speech(
        enums.Operation.REVOKE,
        lambda: payloads.RevokeRequestPayload(
            _identifier("key-333"), objects.RevocationReason(enums.RevocationReasonCode.KEY_COMPROMISE, "lost")
        ),
        [b"key-333"],
    ),
    "destroy": Speech(
        enums.Operation.DESTROY, lambda: payloads.DestroyRequestPayload(_identifier("key-4444")), [b"key-4444"]
    ),
    "query": Speech(
        enums.Operation.QUERY,
        lambda: payloads.QueryRequestPayload([enums.QueryFunction.QUERY_OPERATIONS, enums.QueryFunction.QUERY_OBJECTS]),
        [],
    ),
    "discover versions": Speech(
        enums.Operation.DISCOVER_VERSIONS,
        lambda: payloads.DiscoverVersionsRequestPayload(
            [contents.ProtocolVersion(1, 2), contents.ProtocolVersion(1, 0)]
        ),
        [],
    ),
}

RESPONSES: Final = {
    "create": Speech(
        enums.Operation.CREATE,
        lambda: payloads.CreateResponsePayload(enums.ObjectType.SYMMETRIC_KEY, "key-1"),
        [b"key-1"],
    ),
    "create key pair": Speech(
        enums.Operation.CREATE_KEY_PAIR,
        lambda: payloads.CreateKeyPairResponsePayload("private-1", "public-2"),
        [b"private-1", b"public-2"],
    ),
    "register": Speech(enums.Operation.REGISTER, lambda: payloads.RegisterResponsePayload("key-2"), [b"key-2"]),
    "get": Speech(
        enums.Operation.GET,
        lambda: payloads.GetResponsePayload(enums.ObjectType.SYMMETRIC_KEY, "key-1", _key()),
        [b"key-1"],
    ),
    "locate": Speech(
        enums.Operation.LOCATE,
        lambda: payloads.LocateResponsePayload(unique_identifiers=["key-1", "key-22", "key-333"]),
        [b"key-1", b"key-22", b"key-333"],
    ),
    "activate": Speech(
        enums.Operation.ACTIVATE, lambda: payloads.ActivateResponsePayload(_identifier("key-22")), [b"key-22"]
    ),
    "revoke": Speech(
        enums.Operation.REVOKE, lambda: payloads.RevokeResponsePayload(_identifier("key-333")), [b"key-333"]
    ),
    "destroy": Speech(
        enums.Operation.DESTROY, lambda: payloads.DestroyResponsePayload(_identifier("key-4444")), [b"key-4444"]
    ),
    "query": Speech(
        enums.Operation.QUERY,
        lambda: payloads.QueryResponsePayload(
            operations=[enums.Operation.CREATE, enums.Operation.GET], object_types=[enums.ObjectType.SYMMETRIC_KEY]
        ),
        [],
    ),
    "discover versions": Speech(
        enums.Operation.DISCOVER_VERSIONS,
        lambda: payloads.DiscoverVersionsResponsePayload([contents.ProtocolVersion(1, 2)]),
        [],
    ),
}


def password(username: str = "fred", word: str = "secret") -> Any:
    """Return credentials of name and password, as fields of a header."""
    value = objects.UsernamePasswordCredential(username=username, password=word)
    kind = enums.CredentialType.USERNAME_AND_PASSWORD
    return contents.Authentication([objects.Credential(credential_type=kind, credential_value=value)])


def write_request(version: Version, speeches: Sequence[Speech], ids: Sequence[bytes] = (), **header: Any) -> bytes:
    """Return a request encoded by PyKMIP; ``header`` holds fields of its header."""
    items = [
        messages.RequestBatchItem(
            operation=contents.Operation(speech.operation),
            unique_batch_item_id=contents.UniqueBatchItemID(ids[index]) if ids else None,
            request_payload=speech.payload(),
        )
        for index, speech in enumerate(speeches)
    ]
    head = messages.RequestHeader(
        protocol_version=contents.ProtocolVersion(*version), batch_count=contents.BatchCount(len(items)), **header
    )
    return _write(messages.RequestMessage(request_header=head, batch_items=items), version)


def write_response(version: Version, speeches: Sequence[Speech], ids: Sequence[bytes] = ()) -> bytes:
    """Return a response encoded by PyKMIP, with Success for each item."""
    items = [
        messages.ResponseBatchItem(
            operation=contents.Operation(speech.operation),
            unique_batch_item_id=contents.UniqueBatchItemID(ids[index]) if ids else None,
            result_status=contents.ResultStatus(enums.ResultStatus.SUCCESS),
            response_payload=speech.payload(),
        )
        for index, speech in enumerate(speeches)
    ]
    return _respond(version, items)


def write_failure(version: Version, operation: Any, reason: Any, message: str) -> bytes:
    """Return a response encoded by PyKMIP, with a single failed item."""
    item = messages.ResponseBatchItem(
        operation=None if operation is None else contents.Operation(operation),
        result_status=contents.ResultStatus(enums.ResultStatus.OPERATION_FAILED),
        result_reason=contents.ResultReason(reason),
        result_message=contents.ResultMessage(message),
    )
    return _respond(version, [item])


def _respond(version: Version, items: list[Any]) -> bytes:
    head = messages.ResponseHeader(
        protocol_version=contents.ProtocolVersion(*version),
        time_stamp=contents.TimeStamp(1_700_000_000),
        batch_count=contents.BatchCount(len(items)),
    )
    return _write(messages.ResponseMessage(response_header=head, batch_items=items), version)


def _write(message: Any, version: Version) -> bytes:
    stream = BytearrayStream()
    message.write(stream, kmip_version=VERSIONS[version])
    return bytes(stream.buffer)


def read_request(frame: bytes) -> Any:
    """Decode a request as PyKMIP's server does. Raises PyKMIP's errors."""
    message = messages.RequestMessage()
    message.read(BytearrayStream(frame))
    return message


def read_response(frame: bytes) -> Any:
    """Decode a response as PyKMIP's client does. Raises PyKMIP's errors."""
    message = messages.ResponseMessage()
    message.read(BytearrayStream(frame))
    return message
