"""Generating keys, the pool of key pairs, and streams of AES; test_object_operations_get.py has wrapping."""

import pytest
from kmip_lab.keymanager.crypto import (
    CipherParameters,
    CipherStream,
    KeyPairPool,
    key_bytes,
    new_key_pair,
    new_symmetric_key,
)
from kmip_lab.keymanager.protocol import BlockCipherMode, OperationFailed

from lab.tests.kit.engine_client import AES, EC, OPAQUE, RSA


def test_the_pool_repeats_rsa_pairs_and_generates_other_pairs() -> None:
    pool = KeyPairPool(2)
    first, second, third = (pool(RSA, 2048) for _ in range(3))
    assert first == third
    assert first != second
    assert pool(EC, 256) != pool(EC, 256)


def test_the_bytes_of_a_symmetric_key_are_returned() -> None:
    key = key_bytes(new_symmetric_key(AES, 256))
    assert key is not None
    assert len(key) == 32
    assert key_bytes(OPAQUE) is None


def test_unsupported_keys_and_cipher_parameters_fail() -> None:
    with pytest.raises(OperationFailed, match="only AES keys"):
        new_symmetric_key(AES, 512)
    with pytest.raises(OperationFailed, match="only RSA-2048 and P-256"):
        new_key_pair(RSA, 1024)
    for parameters in (CipherParameters(mode=2), CipherParameters(padding=2)):
        with pytest.raises(OperationFailed, match="only CBC, CTR and GCM"):
            CipherStream.begin(parameters, bytes(32), bytes(16), b"", encrypts=True)


@pytest.mark.parametrize(
    "mode", [BlockCipherMode.CBC, BlockCipherMode.CTR, BlockCipherMode.GCM], ids=lambda mode: mode.name
)
def test_a_stream_decrypts_the_output_of_a_stream(mode: BlockCipherMode) -> None:
    parameters, key = CipherParameters(mode), bytes(range(32))
    iv = bytes(parameters.iv_size())
    encryption = CipherStream.begin(parameters, key, iv, b"", encrypts=True)
    output = encryption.update(b"attack ") + encryption.update(b"at dawn")
    rest, tag = encryption.finish(None)
    decryption = CipherStream.begin(parameters, key, iv, b"", encrypts=False)
    assert decryption.update(output + rest) + decryption.finish(tag)[0] == b"attack at dawn"
