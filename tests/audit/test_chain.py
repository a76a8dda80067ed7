"""The chain of the audit trail: numbers and hashes of lines."""

import hashlib
import hmac
import json

from gateway.audit.chain import BEGINNING, Chain, parse

KEY = b"k" * 32


def test_a_line_has_its_number_and_the_hash_over_the_line_before() -> None:
    chain = Chain()

    first, second = chain.seal('"event":"start"'), chain.seal('"event":"stop"')

    facts = json.loads(first), json.loads(second)
    assert [each["seq"] for each in facts] == [1, 2]
    content = second.rpartition(b',"hash"')[0]
    assert facts[1]["hash"] == hashlib.sha256(facts[0]["hash"].encode() + content).hexdigest()
    assert first.endswith(b"}\n")


def test_with_a_key_the_hash_is_an_hmac() -> None:
    line = Chain(KEY).seal('"event":"start"')

    content = line.rpartition(b',"hmac"')[0]
    assert json.loads(line)["hmac"] == hmac.new(KEY, BEGINNING.encode() + content, "sha256").hexdigest()


def test_a_chain_goes_on_behind_another_line() -> None:
    chain, other = Chain(), Chain()
    line = chain.seal('"event":"start"')
    sealed = parse(line.rstrip(b"\n"))
    assert sealed is not None

    other.go_on(sealed.sequence, sealed.digest)

    assert other.seal('"event":"stop"') == chain.seal('"event":"stop"')


def test_a_text_that_looks_like_the_end_of_a_line_does_not_end_it() -> None:
    chain = Chain()
    forged = json.dumps('","hash":"' + "0" * 64 + '"}')
    line = chain.seal(f'"event":"request","client":{forged}')

    sealed = parse(line.rstrip(b"\n"))

    assert sealed is not None
    assert sealed.digest == chain.last


def test_other_bytes_are_no_line() -> None:
    line = Chain().seal('"event":"start"').rstrip(b"\n")
    for other in (b"", b"{}", line[:-1], line[1:], line + b" ", line.replace(b'"seq":1', b'"seq":0')):
        assert parse(other) is None
