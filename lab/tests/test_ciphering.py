"""Encrypt and Decrypt: all at once, in parts, and parts that nobody here knows."""

import itertools

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES as AES_CIPHER
from cryptography.hazmat.primitives.ciphers.modes import CBC, CTR
from kmip_lab.keymanager import Store
from kmip_lab.keymanager.batch import Engine

from gateway.kmip import ttlv
from gateway.kmip.spec import Operation, ResultReason, Tag
from lab.tests.talk import AES, Answer, Talk, algorithm, length, mask, refused, uid_of

CBC_MODE, CTR_MODE, GCM_MODE = 1, 6, 9
NO_PADDING, PKCS5 = 1, 3
IV = bytes(range(16))
PLAIN = bytes(range(250)) * 2
INIT = ttlv.boolean(Tag.INIT_INDICATOR, True)
FINAL = ttlv.boolean(Tag.FINAL_INDICATOR, True)
MODES = pytest.mark.parametrize("mode", [CBC_MODE, CTR_MODE, GCM_MODE], ids=["CBC", "CTR", "GCM"])


@pytest.fixture(params=[(1, 3), (1, 4), (2, 0), (2, 1)], ids=lambda version: "{}.{}".format(*version))
def talk(engine: Engine, request: pytest.FixtureRequest) -> Talk:
    """A client of each version that has streams."""
    return Talk(engine, request.param)


def parameters(mode: int, padding: int | None = None) -> bytes:
    items = [ttlv.enumeration(Tag.BLOCK_CIPHER_MODE, mode)]
    if padding is not None:
        items.append(ttlv.enumeration(Tag.PADDING_METHOD, padding))
    return ttlv.structure(Tag.CRYPTOGRAPHIC_PARAMETERS, *items)


def data(octets: bytes) -> bytes:
    return ttlv.octets(Tag.DATA, octets)


def iv(octets: bytes) -> bytes:
    return ttlv.octets(Tag.IV_COUNTER_NONCE, octets)


def correlation(which: Answer | bytes) -> bytes:
    value = which if isinstance(which, bytes) else which.payload.octets(Tag.CORRELATION_VALUE)
    assert value is not None, which
    return ttlv.octets(Tag.CORRELATION_VALUE, value)


def octets(answer: Answer, tag: Tag = Tag.DATA) -> bytes:
    assert answer.ok, answer
    found = answer.payload.octets(tag)
    assert found is not None
    return found


def active_key(talk: Talk, bits: int = 0x0C) -> Answer:
    made = talk.create(algorithm(AES), length(256), mask(bits))
    assert talk.activate(made).ok
    return made


def expected(key: bytes, mode: int, plain: bytes) -> bytes:
    """What another implementation makes of it: with the tag at the end, and padding of our own."""
    if mode == GCM_MODE:
        return AESGCM(key).encrypt(IV, plain, b"header")
    padding = bytes([16 - len(plain) % 16]) * (16 - len(plain) % 16) if mode == CBC_MODE else b""
    encryptor = Cipher(AES_CIPHER(key), CBC(IV) if mode == CBC_MODE else CTR(IV)).encryptor()
    return encryptor.update(plain + padding) + encryptor.finalize()


def header(mode: int) -> bytes:
    return ttlv.octets(0x4200FE, b"header") if mode == GCM_MODE else b""


def parts(plain: bytes, size: int = 77) -> list[bytes]:
    return [plain[start : start + size] for start in range(0, len(plain), size)]


def stream(talk: Talk, operation: int, key: Answer, mode: int, pieces: list[bytes], tag: bytes = b"") -> bytes:
    """Parts, one after the other; what comes out, with GCM's tag behind it."""
    answer = talk.ask(operation, uid_of(key), parameters(mode), data(pieces[0]), iv(IV), INIT, header(mode))
    output = octets(answer)
    for piece in pieces[1:-1]:
        answer = talk.ask(operation, uid_of(key), data(piece), correlation(answer))
        output += octets(answer)
    seal = ttlv.octets(Tag.AUTHENTICATED_ENCRYPTION_TAG, tag) if tag else b""
    answer = talk.ask(operation, uid_of(key), data(pieces[-1]), correlation(answer), FINAL, seal)
    assert answer.payload.octets(Tag.CORRELATION_VALUE) is None
    return output + octets(answer) + (answer.payload.octets(Tag.AUTHENTICATED_ENCRYPTION_TAG) or b"")


@MODES
def test_data_in_parts_is_encrypted_and_decrypted(talk: Talk, mode: int) -> None:
    key = active_key(talk)
    secret = stream(talk, Operation.ENCRYPT, key, mode, parts(PLAIN))
    assert secret == expected(talk.get(key).key, mode, PLAIN)
    tag = secret[-16:] if mode == GCM_MODE else b""
    assert stream(talk, Operation.DECRYPT, key, mode, parts(secret[: len(secret) - len(tag)]), tag) == PLAIN


@MODES
@pytest.mark.parametrize("version", [(1, 2), (1, 4), (2, 1)])
def test_data_all_at_once(engine: Engine, mode: int, version: tuple[int, int]) -> None:
    talk = Talk(engine, version)
    key = active_key(talk)
    encrypted = talk.ask(Operation.ENCRYPT, uid_of(key), parameters(mode), data(PLAIN))
    nonce = octets(encrypted, Tag.IV_COUNTER_NONCE)  # made by the server
    tag = encrypted.payload.octets(Tag.AUTHENTICATED_ENCRYPTION_TAG)
    seal = b"" if tag is None else ttlv.octets(Tag.AUTHENTICATED_ENCRYPTION_TAG, tag)
    assert (tag is not None) == (mode == GCM_MODE)
    decrypted = talk.ask(Operation.DECRYPT, uid_of(key), parameters(mode), data(octets(encrypted)), iv(nonce), seal)
    assert octets(decrypted) == PLAIN


def test_a_stream_is_known_to_its_owner_and_its_key_manager_only(talk: Talk, store: Store) -> None:
    key = active_key(talk)
    begun = talk.ask(Operation.ENCRYPT, uid_of(key), parameters(CTR_MODE), data(PLAIN), INIT)
    bob = Talk(talk.engine, talk.version, owner="bob")
    others = (
        (bob, Operation.ENCRYPT, uid_of(active_key(bob))),
        (Talk(Engine("london-001", store), talk.version), Operation.ENCRYPT, uid_of(key)),
        (talk, Operation.DECRYPT, uid_of(key)),
    )
    for other, operation, uid in others:
        answer = other.ask(operation, uid, data(PLAIN), correlation(begun))
        refused(answer, ResultReason.INVALID_FIELD, ResultReason.INVALID_CORRELATION_VALUE)
    assert talk.ask(Operation.ENCRYPT, uid_of(key), data(PLAIN), correlation(begun), FINAL).ok
    again = talk.ask(Operation.ENCRYPT, uid_of(key), data(PLAIN), correlation(begun))
    refused(again, ResultReason.INVALID_FIELD, ResultReason.INVALID_CORRELATION_VALUE)


def test_two_streams_of_one_client_do_not_mix(talk: Talk) -> None:
    key = active_key(talk)
    start = uid_of(key), parameters(CTR_MODE), data(b""), iv(IV), INIT
    streams = [talk.ask(Operation.ENCRYPT, *start) for _ in range(2)]
    outputs = [b"", b""]
    for piece, which in itertools.product(parts(PLAIN), (0, 1)):
        outputs[which] += octets(talk.ask(Operation.ENCRYPT, uid_of(key), data(piece), correlation(streams[which])))
    assert outputs[0] == outputs[1] == expected(talk.get(key).key, CTR_MODE, PLAIN)


def test_what_can_not_be_encrypted_or_decrypted(talk: Talk) -> None:
    key = active_key(talk)
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
        refused(talk.ask(operation, uid_of(key), *items), in_1_x, in_2_x)
    seal = ttlv.octets(Tag.AUTHENTICATED_ENCRYPTION_TAG, bytes(16))
    forged = talk.ask(Operation.DECRYPT, uid_of(key), parameters(GCM_MODE), data(b"x"), iv(IV), seal)
    refused(forged, ResultReason.CRYPTOGRAPHIC_FAILURE)


def test_keys_that_are_not_for_it(talk: Talk) -> None:
    fresh = talk.create(algorithm(AES), length(256), mask(0x0C))
    refused(
        talk.ask(Operation.ENCRYPT, uid_of(fresh), data(b"")),
        ResultReason.PERMISSION_DENIED,
        ResultReason.WRONG_KEY_LIFECYCLE_STATE,
    )
    decrypts_only = active_key(talk, 0x08)
    refused(
        talk.ask(Operation.ENCRYPT, uid_of(decrypts_only), data(b"")),
        ResultReason.PERMISSION_DENIED,
        ResultReason.INCOMPATIBLE_CRYPTOGRAPHIC_USAGE_MASK,
    )
    key = active_key(talk)
    encrypted = talk.ask(Operation.ENCRYPT, uid_of(key), data(PLAIN), iv(IV))
    assert talk.revoke(key).ok
    assert octets(talk.ask(Operation.DECRYPT, uid_of(key), data(octets(encrypted)), iv(IV))) == PLAIN
    refused(
        talk.ask(Operation.ENCRYPT, uid_of(key), data(PLAIN)),
        ResultReason.PERMISSION_DENIED,
        ResultReason.WRONG_KEY_LIFECYCLE_STATE,
    )
