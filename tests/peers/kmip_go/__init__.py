"""kmip-go: its client in front of the gateway, its server behind."""

from tests.peers.kmip_go.peer import CLIENT, SERVER

__all__ = ["CLIENT", "SERVER"]
