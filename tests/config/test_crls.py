"""CRLs in files: read, verified, and refused with a text for the operator."""

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS

from gateway.config import crls
from gateway.config.crls import Crl, distribution_points, issuer_key, missing_lists, read_crls
from tests.kit.revocation import DAY, HOUR, TestCa

ROOT = TestCa("Root")
INTERMEDIATE = TestCa("Intermediate", ROOT)
STRANGER = TestCa("Root")  # with the root's name and another key


def read(folder: Path, *contents: bytes, authorities: tuple[TestCa, ...] = (ROOT, INTERMEDIATE)) -> list[Crl]:
    paths = [folder / f"{index}.crl" for index in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return read_crls(paths, [each.certificate for each in authorities], folder / "ca.pem")


def mistake(folder: Path, *contents: bytes, authorities: tuple[TestCa, ...] = (ROOT, INTERMEDIATE)) -> str:
    with pytest.raises(ValueError, match=r".") as raised:
        read(folder, *contents, authorities=authorities)
    return str(raised.value).replace(f"{folder}/", "")


def test_several_lists_are_read_from_pem_and_der(tmp_path: Path) -> None:
    both = ROOT.crl_pem([1, 2]) + b"\r\nsome text\r\n" + INTERMEDIATE.crl_pem([3]).replace(b"\n", b"\r\n")
    found = read(tmp_path, both)
    assert [(crl.name, set(crl.serials)) for crl in found] == [("CN=Root", {1, 2}), ("CN=Intermediate", {3})]
    assert [crl.issuer for crl in found] == [issuer_key(ROOT.certificate), issuer_key(INTERMEDIATE.certificate)]
    der = ROOT.crl([7]).public_bytes(serialization.Encoding.DER)
    assert [crl.serials for crl in read(tmp_path, der)] == [{7}]


def test_the_newest_list_of_a_ca_counts_wherever_it_stands(tmp_path: Path) -> None:
    old, new = ROOT.crl_pem([1], number=1), ROOT.crl_pem([2], number=2)
    for contents in [(old, new), (new, old), (old + new,), (new + old,)]:
        assert [crl.serials for crl in read(tmp_path, *contents)] == [{2}]


def test_times_are_those_of_the_list(tmp_path: Path) -> None:
    (crl,) = read(tmp_path, ROOT.crl_pem(begins=-2 * HOUR, lasts=HOUR))
    assert crl.ends - crl.begins == 3 * 3600
    now = crl.begins + 2 * 3600
    assert (crl.lapse(now), crl.lapse(now + 3700), crl.lapse(now - 7300)) == ("", "is out of date", "is not valid yet")


def test_a_list_in_parts_has_a_scope_of_its_own(tmp_path: Path) -> None:
    def part(uri: str, revoked: int, **only: bool) -> bytes:
        point = x509.IssuingDistributionPoint(
            [x509.UniformResourceIdentifier(uri)],
            None,
            only.get("users", False),
            only.get("cas", False),
            None,
            indirect_crl=False,
            only_contains_attribute_certs=False,
        )
        return ROOT.crl_pem([revoked], extensions=[(point, True)])

    one, two, cas = read(
        tmp_path, part("http://a/1", 1), part("http://a/2", 2, users=True), part("http://a/1", 3, cas=True)
    )
    assert [set(each.serials) for each in (one, two, cas)] == [{1}, {2}, {3}]
    at_1, at_2 = frozenset({"http://a/1"}), frozenset({"http://a/2", "http://b/2"})
    assert one.speaks_for(at_1, is_ca=True)
    assert one.speaks_for(at_1, is_ca=False)
    assert not one.speaks_for(at_2, is_ca=False)
    assert not one.speaks_for(frozenset(), is_ca=False)
    assert two.speaks_for(at_2, is_ca=False)
    assert not two.speaks_for(at_2, is_ca=True)
    assert cas.speaks_for(at_1, is_ca=True)
    assert not cas.speaks_for(at_1, is_ca=False)


def test_distribution_points_of_a_certificate() -> None:
    assert distribution_points(ROOT.issue("alice", points=["http://a/1", "http://a/2"])) == {"http://a/1", "http://a/2"}
    assert distribution_points(ROOT.issue("bob")) == frozenset()


def test_a_list_that_its_ca_has_not_signed_is_refused(tmp_path: Path) -> None:
    forged = "0.crl holds a CRL of CN=Root that this CA has not signed; fetch it again, and find out where it came from"
    assert mistake(tmp_path, ROOT.crl_pem(signer=STRANGER)) == forged
    assert mistake(tmp_path, STRANGER.crl_pem()) == forged
    assert len(read(tmp_path, STRANGER.crl_pem(), authorities=(ROOT, STRANGER))) == 1
    changed = bytearray(ROOT.crl([0x1234567890ABCDEF]).public_bytes(serialization.Encoding.DER))
    at = changed.index(bytes.fromhex("1234567890abcdef"))
    changed[at] ^= 1
    assert mistake(tmp_path, bytes(changed)) == forged


def test_a_list_of_an_unknown_ca_is_refused(tmp_path: Path) -> None:
    assert mistake(tmp_path, INTERMEDIATE.crl_pem(), authorities=(ROOT,)) == (
        "0.crl holds a CRL of CN=Intermediate, and ca.pem does not have the certificate of that CA; add it (an"
        " intermediate CA lets no further peers in), or leave out this CRL"
    )


def test_a_ca_without_the_right_to_sign_lists_is_refused(tmp_path: Path) -> None:
    authority = TestCa("Root", signs_crls=False)
    assert "keyUsage cRLSign" in mistake(tmp_path, authority.crl_pem(), authorities=(authority,))


def test_kinds_of_lists_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    def point(**how: bool) -> x509.IssuingDistributionPoint:
        return x509.IssuingDistributionPoint(
            None,
            None,
            only_contains_user_certs=False,
            only_contains_ca_certs=False,
            only_some_reasons=None,
            indirect_crl=how.get("indirect", False),
            only_contains_attribute_certs=how.get("attributes", False),
        )

    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    for extension, said in [
        (x509.DeltaCRLIndicator(1), "that is a delta CRL; give the complete CRL"),
        (point(indirect=True), "that is an indirect CRL; give the CRLs of the CAs themselves"),
        (point(attributes=True), "for some reasons, attribute certificates or a relative name only; give another"),
        (unknown, "with the unknown critical extension 1.2.3.4; give another"),
    ]:
        made = ROOT.crl_pem(extensions=[(extension, True)])
        assert mistake(tmp_path, made) == f"0.crl holds a CRL of CN=Root {said}"
    assert len(read(tmp_path, ROOT.crl_pem(extensions=[(unknown, False)]))) == 1


def test_a_list_without_an_end_is_refused(tmp_path: Path) -> None:
    assert mistake(tmp_path, ROOT.crl_pem(lasts=None)) == (
        "0.crl holds a CRL of CN=Root without nextUpdate, which never becomes stale; have the CA say when it ends"
    )


@pytest.mark.parametrize("name", ["rsa", "rsa-pss", "ed25519"])
def test_signatures_of_every_usual_kind_are_verified(tmp_path: Path, name: str) -> None:
    authority = TestCa("Root")
    key = ed25519.Ed25519PrivateKey.generate() if name == "ed25519" else rsa.generate_private_key(65537, 2048)
    padding = PSS(MGF1(hashes.SHA256()), 32) if name == "rsa-pss" else None
    digest = None if name == "ed25519" else hashes.SHA256()
    authority.certificate = (
        x509.CertificateBuilder()
        .subject_name(authority.certificate.subject)
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(authority.certificate.not_valid_before_utc)
        .not_valid_after(authority.certificate.not_valid_after_utc)
        .sign(key, digest)
    )
    template = authority.crl()
    assert template.next_update_utc is not None
    builder = x509.CertificateRevocationListBuilder().issuer_name(template.issuer)
    builder = builder.last_update(template.last_update_utc).next_update(template.next_update_utc)
    signed = builder.sign(key, digest, rsa_padding=padding)
    assert len(read(tmp_path, signed.public_bytes(serialization.Encoding.PEM), authorities=(authority,))) == 1
    other = builder.sign(ROOT.key, hashes.SHA256())
    assert "not signed" in mistake(tmp_path, other.public_bytes(serialization.Encoding.PEM), authorities=(authority,))


def test_a_long_list_is_decoded_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = set(range(1, 3000))
    for part in (7, 64, 65536):
        monkeypatch.setattr(crls, "_PART", part)
        assert [crl.serials for crl in read(tmp_path, ROOT.crl_pem(numbers))] == [numbers]


def test_files_that_hold_no_list_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*missing; fetch the CRL, or correct the path"):
        read_crls([tmp_path / "missing"], [], tmp_path)
    with pytest.raises(ValueError, match="is a directory; give the path of a file of CRLs"):
        read_crls([tmp_path], [], tmp_path)
    assert mistake(tmp_path, ROOT.pem) == "0.crl holds no CRL; give a file of CRLs, in PEM (BEGIN X509 CRL) or DER"
    pem = ROOT.crl_pem([1])
    for damaged in (pem.replace(b"M", b"?", 1), b"\x30\x82\x01\x00abc", pem.replace(pem[60:124], b"")):
        assert mistake(tmp_path, damaged) == "0.crl holds a CRL that is cut off or damaged; fetch it again"
    for cut in (pem[:100], pem + pem[:200], pem.replace(b"-----END", b"=-----END")):
        assert mistake(tmp_path, cut) == "0.crl holds a CRL that is cut off or damaged; fetch it again"
    monkeypatch.setattr(crls, "MAX_FILE", len(pem) - 1)
    assert "more than 0 MiB; have the CA split its CRL" in mistake(tmp_path, pem)


def test_cas_without_a_list_are_missing(tmp_path: Path) -> None:
    ended = TestCa("Old", lasts=-DAY)
    found = read(tmp_path, ROOT.crl_pem())
    authorities = [each.certificate for each in (ROOT, INTERMEDIATE, ended)]
    assert missing_lists(authorities, found, found[0].begins - 2 * DAY.total_seconds()) == ["CN=Intermediate", "CN=Old"]
    assert missing_lists(authorities, found, found[0].ends) == ["CN=Intermediate"]
