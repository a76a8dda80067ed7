"""A simulated key manager: a KMIP server over mutual TLS for the demo, the tests and the measurements.

Unfit for production: keys are kept unprotected, and whoever holds a client certificate may make as many as they like.
It speaks KMIP 1.0 to 2.1 and keeps its objects in a Store, which several key managers may share; or each has one of its
own, and they replicate.

From top to bottom: ``command`` starts them; ``server`` has the connections; ``costs`` is the HSM; ``batch`` executes a
request item by item, by the table in ``operations``, and notes it in the ``journal``; ``making``, ``reading``,
``changing``, ``lifecycle``, ``asking``, ``ciphering``, ``tickets`` and ``greeting`` are the operations; ``call`` is
what they are given; ``local`` is what no other key manager knows: ``deferred`` operations, streams of ``ciphers``,
tickets; ``keys`` and ``attributes`` know what objects are made of; ``store`` keeps ``objects``. For ``replication``, by
the ``roles`` of a cluster, the store logs its ``changes``, and a master is ``sending`` them over the ``wire``.
"""

from kmip_lab.keymanager.journal import Journal, read_journal
from kmip_lab.keymanager.replication import Replication
from kmip_lab.keymanager.roles import Link, Member, Role, promote, read_roles, two_plus_two, write_roles
from kmip_lab.keymanager.server import KeyManager
from kmip_lab.keymanager.store import Store

__all__ = [
    "Journal",
    "KeyManager",
    "Link",
    "Member",
    "Replication",
    "Role",
    "Store",
    "promote",
    "read_journal",
    "read_roles",
    "two_plus_two",
    "write_roles",
]
