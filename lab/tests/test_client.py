"""The requests of the small client, put to a key manager."""

from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from kmip_lab import client
from kmip_lab.keymanager.engine import Engine

from gateway.kmip.decode import decode_response
from gateway.kmip.messages import Response
from gateway.kmip.spec import ResultStatus


def ask(engine: Engine, frame: bytes) -> Response:
    response = decode_response(engine.handle(frame, "alice"))
    assert response.items[0].status == ResultStatus.SUCCESS, response.items[0].message
    return response


def made(engine: Engine, frame: bytes) -> list[str]:
    return [uid.decode() for uid in ask(engine, frame).items[0].unique_identifiers]


def test_a_key_is_made_and_wrapped(engine: Engine) -> None:
    (wrapping,) = made(engine, client.create_key(usage=client.WRAP_KEY))
    ask(engine, client.activate(wrapping))
    (uid,) = made(engine, client.create_key())
    wrapped = client.key_value(ask(engine, client.wrap_key(uid, wrapping)))
    plain = client.key_value(ask(engine, client.get_key(uid)))
    kek = client.key_value(ask(engine, client.get_key(wrapping)))
    assert aes_key_unwrap(kek, wrapped) == plain


def test_pairs_are_made(engine: Engine) -> None:
    for frame in (client.create_rsa_pair(), client.create_ecdsa_pair()):
        assert len(made(engine, frame)) == 2
