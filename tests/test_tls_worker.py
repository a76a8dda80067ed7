"""A TLS worker's share of the gateway's limits. Its processes are tested in tests/e2e/test_tls_workers.py."""

import pytest

from gateway.config import LimitsConfig, PerAddressConfig
from gateway.config.model import Config
from gateway.tls_worker import share_of


@pytest.mark.parametrize(("workers", "half_open", "clients"), [(1, 1000, 10), (3, 334, 4), (10, 100, 1)])
def test_each_worker_has_its_share_rounded_up(workers: int, half_open: int, clients: int) -> None:
    config = Config.model_construct(
        limits=LimitsConfig(max_half_open=1000),
        per_address=PerAddressConfig(max_clients=10, handshakes_per_second=30.0),
        identities=("some",),
    )
    share = share_of(config, workers)
    assert share.limits.max_half_open == half_open
    assert share.per_address.max_clients == clients
    assert share.per_address.handshakes_per_second == 30.0 / workers
    assert share.identities == ()


def test_the_share_of_bytes_always_has_room_for_a_request_and_its_answer() -> None:
    limits = LimitsConfig(max_buffered=10_000_000)
    config = Config.model_construct(limits=limits, per_address=PerAddressConfig(), identities=())
    assert share_of(config, 2).limits.max_buffered == 5_000_000
    assert share_of(config, 64).limits.max_buffered == limits.max_request_size + limits.max_response_size
