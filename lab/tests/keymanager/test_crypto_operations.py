"""Encrypt and Decrypt: all data at once, in parts, and parts with an unknown correlation value."""

import itertools

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES as AES_CIPHER
from cryptography.hazmat.primitives.ciphers.modes import CBC, CTR
from kmip_lab.keymanager import Store
from kmip_lab.keymanager.engine import Engine

from gateway.kmip import ttlv
from gateway.kmip.spec import Operation, ResultReason, Tag
from lab.tests.kit.engine_client import (
    AES,
    EngineClient,
    OperationResult,
    algorithm,
    assert_failed,
    length,
    mask,
    uid_of,
)

CBC_MODE, CTR_MODE, GCM_MODE = 1, 6, 9
NO_PADDING, PKCS5 = 1, 3
IV = bytes(range(16))
PLAIN = bytes(range(250)) * 2
INIT = ttlv.boolean(Tag.INIT_INDICATOR, True)
FINAL = ttlv.boolean(Tag.FINAL_INDICATOR, True)
MODES = pytest.mark.parametrize("mode", [CBC_MODE, CTR_MODE, GCM_MODE], ids=["CBC", "CTR", "GCM"])


@pytest.fixture(params=[(1, 3), (1, 4), (2, 0), (2, 1)], ids=lambda version: "{}.{}".format(*version))
def client(engine: Engine, request: pytest.FixtureRequest) -> EngineClient:
    """Return a client of each version that has streams."""
    return EngineClient(engine, request.param)


def parameters(mode: int, padding: int | None = None) -> bytes:
    items = [ttlv.enumeration(Tag.BLOCK_CIPHER_MODE, mode)]
    if padding is not None:
        items.append(ttlv.enumeration(Tag.PADDING_METHOD, padding))
    return ttlv.structure(Tag.CRYPTOGRAPHIC_PARAMETERS, *items)


def data(octets: bytes) -> bytes:
    return ttlv.octets(Tag.DATA, octets)


def iv(octets: bytes) -> bytes:
    return ttlv.octets(Tag.IV_COUNTER_NONCE, octets)


def correlation(which: OperationResult | bytes) -> bytes:
    value = which if isinstance(which, bytes) else which.payload.octets(Tag.CORRELATION_VALUE)
    assert value is not None, which
    return ttlv.octets(Tag.CORRELATION_VALUE, value)


def octets(answer: OperationResult, tag: Tag = Tag.DATA) -> bytes:
    assert answer.ok, answer
    found = answer.payload.octets(tag)
    assert found is not None
    return found


def active_key(client: EngineClient, bits: int = 0x0C) -> OperationResult:
    made = client.create(algorithm(AES), length(256), mask(bits))
    assert client.activate(made).ok
    return made


def expected(key: bytes, mode: int, plain: bytes) -> bytes:
    """Return the output of `cryptography` for the same key, with GCM's tag at the end and PKCS5 padding for CBC."""
    if mode == GCM_MODE:
        return AESGCM(key).encrypt(IV, plain, b"header")
    padding = bytes([16 - len(plain) % 16]) * (16 - len(plain) % 16) if mode == CBC_MODE else b""
    encryptor = Cipher(AES_CIPHER(key), CBC(IV) if mode == CBC_MODE else CTR(IV)).encryptor()
    return encryptor.update(plain + padding) + encryptor.finalize()


def header(mode: int) -> bytes:
    return ttlv.octets(0x4200FE, b"header") if mode == GCM_MODE else b""


def parts(plain: bytes, size: int = 77) -> list[bytes]:
    return [plain[start : start + size] for start in range(0, len(plain), size)]


def stream(
    client: EngineClient, operation: int, key: OperationResult, mode: int, pieces: list[bytes], tag: bytes = b""
) -> bytes:
    """Process the pieces in parts; return the whole output, with GCM's tag at the end."""
    answer = client.ask(operation, uid_of(key), parameters(mode), data(pieces[0]), iv(IV), INIT, header(mode))
    output = octets(answer)
    for piece in pieces[1:-1]:
        answer = client.ask(operation, uid_of(key), data(piece), correlation(answer))
        output += octets(answer)
    seal = ttlv.octets(Tag.AUTHENTICATED_ENCRYPTION_TAG, tag) if tag else b""
    answer = client.ask(operation, uid_of(key), data(pieces[-1]), correlation(answer), FINAL, seal)
    assert answer.payload.octets(Tag.CORRELATION_VALUE) is None
    return output + octets(answer) + (answer.payload.octets(Tag.AUTHENTICATED_ENCRYPTION_TAG) or b"")


@MODES
def test_data_in_parts_is_encrypted_and_decrypted(client: EngineClient, mode: int) -> None:
    key = active_key(client)
    secret = stream(client, Operation.ENCRYPT, key, mode, parts(PLAIN))
    assert secret == expected(client.get(key).key, mode, PLAIN)
    tag = secret[-16:] if mode == GCM_MODE else b""
    assert stream(client, Operation.DECRYPT, key, mode, parts(secret[: len(secret) - len(tag)]), tag) == PLAIN


@MODES
@pytest.mark.parametrize("version", [(1, 2), (1, 4), (2, 1)])
def test_data_at_once_is_encrypted_and_decrypted(engine: Engine, mode: int, version: tuple[int, int]) -> None:
    client = EngineClient(engine, version)
    key = active_key(client)
    encrypted = client.ask(Operation.ENCRYPT, uid_of(key), parameters(mode), data(PLAIN))
    nonce = octets(encrypted, Tag.IV_COUNTER_NONCE)  # made by the key manager
    tag = encrypted.payload.octets(Tag.AUTHENTICATED_ENCRYPTION_TAG)
    seal = b"" if tag is None else ttlv.octets(Tag.AUTHENTICATED_ENCRYPTION_TAG, tag)
    assert (tag is not None) == (mode == GCM_MODE)
    decrypted = client.ask(Operation.DECRYPT, uid_of(key), parameters(mode), data(octets(encrypted)), iv(nonce), seal)
    assert octets(decrypted) == PLAIN


def test_a_stream_belongs_to_its_owner_operation_and_key_manager(client: EngineClient, store: Store) -> None:
    key = active_key(client)
    begun = client.ask(Operation.ENCRYPT, uid_of(key), parameters(CTR_MODE), data(PLAIN), INIT)
    bob = EngineClient(client.engine, client.version, owner="bob")
    others = (
        (bob, Operation.ENCRYPT, uid_of(active_key(bob))),
        (EngineClient(Engine("london-001", store), client.version), Operation.ENCRYPT, uid_of(key)),
        (client, Operation.DECRYPT, uid_of(key)),
    )
    for other, operation, uid in others:
        answer = other.ask(operation, uid, data(PLAIN), correlation(begun))
        assert_failed(answer, ResultReason.INVALID_FIELD, ResultReason.INVALID_CORRELATION_VALUE)
    assert client.ask(Operation.ENCRYPT, uid_of(key), data(PLAIN), correlation(begun), FINAL).ok
    again = client.ask(Operation.ENCRYPT, uid_of(key), data(PLAIN), correlation(begun))
    assert_failed(again, ResultReason.INVALID_FIELD, ResultReason.INVALID_CORRELATION_VALUE)


def test_two_streams_of_one_client_do_not_mix(client: EngineClient) -> None:
    key = active_key(client)
    start = uid_of(key), parameters(CTR_MODE), data(b""), iv(IV), INIT
    streams = [client.ask(Operation.ENCRYPT, *start) for _ in range(2)]
    outputs = [b"", b""]
    for piece, which in itertools.product(parts(PLAIN), (0, 1)):
        outputs[which] += octets(client.ask(Operation.ENCRYPT, uid_of(key), data(piece), correlation(streams[which])))
    assert outputs[0] == outputs[1] == expected(client.get(key).key, CTR_MODE, PLAIN)


def test_invalid_data_and_parameters_fail(client: EngineClient) -> None:
    key = active_key(client)
    cases = [
        (Operation.ENCRYPT, [parameters(CBC_MODE, NO_PADDING), data(b"odd")], ResultReason.CRYPTOGRAPHIC_FAILURE, None),
        (Operation.ENCRYPT, [parameters(CBC_MODE), data(b""), iv(b"no")], ResultReason.CRYPTOGRAPHIC_FAILURE, None),
        (Operation.DECRYPT, [data(bytes(16)), iv(IV)], ResultReason.CRYPTOGRAPHIC_FAILURE, None),
        (Operation.DECRYPT, [parameters(GCM_MODE), data(b"x"), iv(IV)], ResultReason.INVALID_FIELD, None),
        (Operation.ENCRYPT, [], ResultReason.MISSING_DATA, None),
        (
            Operation.DECRYPT,
            [data(bytes(16))],
            ResultReason.INVALID_FIELD,
            ResultReason.MISSING_INITIALIZATION_VECTOR,
        ),
        (
            Operation.ENCRYPT,
            [parameters(2), data(b"")],
            ResultReason.INVALID_FIELD,
            ResultReason.UNSUPPORTED_CRYPTOGRAPHIC_PARAMETERS,
        ),
    ]
    for operation, items, in_1_x, in_2_x in cases:
        assert_failed(client.ask(operation, uid_of(key), *items), in_1_x, in_2_x)
    seal = ttlv.octets(Tag.AUTHENTICATED_ENCRYPTION_TAG, bytes(16))
    forged = client.ask(Operation.DECRYPT, uid_of(key), parameters(GCM_MODE), data(b"x"), iv(IV), seal)
    assert_failed(forged, ResultReason.CRYPTOGRAPHIC_FAILURE)


def test_keys_of_the_wrong_state_or_usage_fail(client: EngineClient) -> None:
    fresh = client.create(algorithm(AES), length(256), mask(0x0C))
    assert_failed(
        client.ask(Operation.ENCRYPT, uid_of(fresh), data(b"")),
        ResultReason.PERMISSION_DENIED,
        ResultReason.WRONG_KEY_LIFECYCLE_STATE,
    )
    decrypts_only = active_key(client, 0x08)
    assert_failed(
        client.ask(Operation.ENCRYPT, uid_of(decrypts_only), data(b"")),
        ResultReason.PERMISSION_DENIED,
        ResultReason.INCOMPATIBLE_CRYPTOGRAPHIC_USAGE_MASK,
    )
    key = active_key(client)
    encrypted = client.ask(Operation.ENCRYPT, uid_of(key), data(PLAIN), iv(IV))
    assert client.revoke(key).ok
    assert octets(client.ask(Operation.DECRYPT, uid_of(key), data(octets(encrypted)), iv(IV))) == PLAIN
    assert_failed(
        client.ask(Operation.ENCRYPT, uid_of(key), data(PLAIN)),
        ResultReason.PERMISSION_DENIED,
        ResultReason.WRONG_KEY_LIFECYCLE_STATE,
    )
