"""PyKMIP: its server behind the gateway, its client in front."""

from tests.peers.pykmip.peer import CLIENT, SERVER

__all__ = ["CLIENT", "SERVER"]
