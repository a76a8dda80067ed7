"""``make cosmian``: build Cosmian KMS from its source on crates.io, in some twenty minutes."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.peers.cosmian import PROGRAM, VERSION

_HERE: Final = Path(__file__).parent
#: The published manifest turns on a feature of a package that it does not depend on, which cargo refuses.
_BROKEN: Final = '    "cosmian_kms_client_utils/non-fips",\n'


def main() -> None:
    """Download the source, mend its manifest, and build it."""
    found = subprocess.run(
        ["cargo", "metadata", "--locked", "--format-version", "1"],
        cwd=_HERE,
        capture_output=True,
        text=True,
        check=True,
    )
    packages = {(each["name"], each["version"]): each for each in json.loads(found.stdout)["packages"]}
    published = Path(packages["cosmian_kms_server", VERSION]["manifest_path"]).parent
    target = PROGRAM.parents[1]
    source = target / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(published, source)
    manifest = source / "Cargo.toml"
    manifest.write_text(manifest.read_text().replace(_BROKEN, "") + "\n[workspace]\n")
    subprocess.run(
        ["cargo", "build", "--locked", "--features", "non-fips", "--bin", PROGRAM.name, "--target-dir", str(target)],
        cwd=source,
        env={**os.environ, "CARGO_PROFILE_DEV_DEBUG": "0"},
        check=True,
    )


if __name__ == "__main__":
    main()
