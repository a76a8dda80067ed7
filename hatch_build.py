"""Compile the hot modules with mypyc into the wheel, if the environment has HATCH_BUILD_HOOK_ENABLE_CUSTOM=true.

``make wheel-compiled`` sets it. No file is written into the source's directories. The modules are compiled in one
group, so that a call from one to another is a call in C. MYPYC_OPT_LEVEL is the compiler's level of optimisation (3);
the end-to-end tests in .ci/run take 0, which compiles in half the time. See docs/performance.md.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds shared libraries to a wheel; a library takes precedence over the Python file beside it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the modules of ``tool.hatch.build.targets.wheel.hooks.custom`` in pyproject.toml."""
        if version == "editable":
            raise RuntimeError("an editable installation runs from the source: it can't be compiled")
        from mypyc.build import mypycify  # noqa: PLC0415 - not installed unless this hook is enabled
        from setuptools import Distribution  # noqa: PLC0415

        self._directory = Path(tempfile.mkdtemp(prefix="kmip-gateway-compile-"))
        os.chdir(self.root)
        extensions = mypycify(
            self.config["modules"],
            opt_level=os.environ.get("MYPYC_OPT_LEVEL", "3"),
            debug_level="0",
            target_dir=str(self._directory / "c"),
        )
        command = Distribution({"ext_modules": extensions}).get_command_obj("build_ext")
        command.build_temp, command.build_lib = str(self._directory / "o"), str(self._directory / "so")
        command.ensure_finalized()
        command.run()
        libraries = self._directory / "so"
        for file in sorted(libraries.rglob("*.so")):
            build_data["force_include"][str(file)] = str(file.relative_to(libraries))
        build_data["pure_python"], build_data["infer_tag"] = False, True

    def finalize(self, _version: str, _build_data: dict[str, Any], _artifact_path: str) -> None:
        """Remove the intermediate files."""
        shutil.rmtree(self._directory)
