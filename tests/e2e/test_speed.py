"""``kmip-lab speed`` against the server of PyKMIP."""

import json
from pathlib import Path

from click.testing import CliRunner
from kmip_lab.cli import main

from tests.kit.processes import Certificates, running_pykmip_server

#: The measured operations that PyKMIP supports: it makes no keys on elliptic curves.
OPERATIONS = ("get", "wrap", "create", "create-rsa", "server", "versions")


def test_speed_measures_pykmips_server(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "certificates")
    certificate, private_key = certificates.credential("client")
    credential = [f"--certificate={certificate}", f"--private-key={private_key}"]
    with running_pykmip_server(certificates, tmp_path / "database") as port:
        options = [f"--address=127.0.0.1:{port}", *credential, f"--ca={certificates.path('kms_ca.pem')}", "--json"]
        flags = [f"--{name}" for name in OPERATIONS]
        kept = CliRunner().invoke(main, ["speed", *options, *flags, "--repeat=2", "--clients=2"])
        resumed = CliRunner().invoke(main, ["speed", *options, "--get", "--resume", "--repeat=3"])
        refused = CliRunner().invoke(main, ["speed", *options, "--create-ecc", "--repeat=1"])
    assert kept.exit_code == 0, kept.output
    found = json.loads(kept.stdout)
    assert [one["operations"] for one in found["measurements"]] == [4] * len(OPERATIONS)
    assert found["warnings"] == []
    (one,) = json.loads(resumed.stdout)["measurements"]
    assert (one["operations"], one["full_handshakes"] + one["resumed_handshakes"]) == (3, 3)
    assert refused.exit_code == 1
    (error,) = json.loads(refused.stdout)["measurements"][0]["errors"]
    assert error["kind"].startswith("refused: ")
