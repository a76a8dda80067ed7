"""Requests, answered by a key manager, and the parts of its answers."""

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from kmip_lab.keymanager.engine import Engine
from kmip_lab.tools import requests

from gateway.errors import ProtocolError
from gateway.kmip.decode import decode_request, decode_response
from gateway.kmip.messages import Response, Version
from gateway.kmip.spec import ResultStatus


def ask(engine: Engine, frame: bytes) -> Response:
    response = decode_response(engine.handle(frame, "alice"))
    assert response.items[0].status == ResultStatus.SUCCESS, response.items[0].message
    return response


def made(engine: Engine, frame: bytes) -> list[str]:
    return [uid.decode() for uid in ask(engine, frame).items[0].unique_identifiers]


VERSIONS: list[Version] = [(1, 0), (1, 2), (1, 4), (2, 1)]


@pytest.mark.parametrize("version", VERSIONS[1:])  # 1.0 wraps the whole Key Value
def test_a_key_is_created_and_wrapped(engine: Engine, version: Version) -> None:
    (wrapping,) = made(engine, requests.create_key(version, usage=requests.WRAP_KEY))
    ask(engine, requests.activate(wrapping, version))
    (uid,) = made(engine, requests.create_key(version, contact="somebody"))
    wrapped = requests.key_value(ask(engine, requests.wrap_key(uid, wrapping, version)))
    plain = requests.key_value(ask(engine, requests.get_key(uid, version)))
    kek = requests.key_value(ask(engine, requests.get_key(wrapping, version)))
    assert aes_key_unwrap(kek, wrapped) == plain


@pytest.mark.parametrize("version", VERSIONS)
def test_key_pairs_are_created(engine: Engine, version: Version) -> None:
    for frame in (requests.create_rsa_pair(version), requests.create_ecdsa_pair(version)):
        assert len(made(engine, frame)) == 2


def test_an_active_key_is_revoked_and_destroyed(engine: Engine) -> None:
    (uid,) = made(engine, requests.create_key())
    for frame in (requests.activate(uid), requests.revoke(uid), requests.destroy(uid)):
        ask(engine, frame)


def test_discover_versions_is_sent_in_the_lowest_version_that_has_it(engine: Engine) -> None:
    request = requests.discover_versions([(1, 4), (1, 0)])
    assert decode_request(request).version == (1, 1)
    assert requests.versions_in(ask(engine, request).items[0]) == [(1, 4), (1, 0)]


def test_an_answer_without_a_key_has_no_key_value(engine: Engine) -> None:
    with pytest.raises(ProtocolError, match="SYMMETRIC_KEY"):
        requests.key_value(ask(engine, requests.create_key()))
