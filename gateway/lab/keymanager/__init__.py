"""A simulated key manager: a KMIP server over mutual TLS for the demo, the tests and the measurements.

Unfit for production: keys are kept unprotected, and whoever holds a client certificate may make as many as they like.
It speaks KMIP 1.0 to 2.1 and keeps its objects in a Store, which several key managers may share.

From top to bottom: ``command`` starts them; ``server`` has the connections; ``costs`` is the HSM; ``batch`` executes
a request item by item, by the table in ``operations``, and notes it in the ``journal``; ``making``, ``reading``,
``changing``, ``lifecycle`` and ``greeting`` are the operations; ``call`` is what they are given; ``keys`` and
``attributes`` know what objects are made of; ``store`` keeps ``objects``.
"""

from gateway.lab.keymanager.journal import Journal, read_journal
from gateway.lab.keymanager.server import KeyManager
from gateway.lab.keymanager.store import Store

__all__ = ["Journal", "KeyManager", "Store", "read_journal"]
