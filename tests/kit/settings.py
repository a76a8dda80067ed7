"""Settings for tests: tables of the configuration with required settings filled in, and objects built from tables."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.config import AllowanceConfig, LimitsConfig, ListenerConfig, PerAddressConfig
from gateway.front.admission import Admission


def listener_config(name: str = "kmip", **settings: Any) -> ListenerConfig:
    """Return the table of a listener, whose files are not read."""
    unused = Path("unused")
    files = {"certificate": unused, "private_key": unused, "client_ca": unused}
    return ListenerConfig.model_validate({"name": name, "bind": "127.0.0.1:0", **files, **settings})


def make_admission(
    *,
    per_address: PerAddressConfig | None = None,
    allowances: Mapping[str, AllowanceConfig] | None = None,
    **limits: int,
) -> Admission:
    """Return an Admission. ``limits`` are settings of [limits], also below the least that a file may give."""
    return Admission(
        limits=LimitsConfig.model_construct(None, **limits),
        per_address=per_address or PerAddressConfig(),
        allowances=defaultdict(AllowanceConfig, allowances or {}),
    )
