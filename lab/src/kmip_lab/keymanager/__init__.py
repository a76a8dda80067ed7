"""A simulated key manager: a KMIP server over mutual TLS for the demo, the tests and the measurements.

Not for production: keys are kept unprotected, and every client with a certificate may make any number of them. It
speaks KMIP 1.0 to 2.1 and keeps its objects in a store. Several key managers may share a store, or each has a store of
its own and they replicate.

The modules, from top to bottom:

* ``command`` starts key managers in a process; ``server`` serves the connections of one; ``costs`` is its HSM.
* ``engine`` executes a request item by item, by its table of operations, and records it in the ``journal``.
* ``object_operations``, ``attribute_operations``, ``crypto_operations`` and ``server_operations`` are the operations;
  ``context`` is their argument, with the ``server_state`` that no other key manager knows.
* ``replication`` is a key manager's part in a cluster, by its ``roles``: as a master it has a ``replication_sender``
  for each replica.
* ``store`` keeps the objects and, for replication, a ``replication_log`` of changes.
* ``attributes`` defines objects and their attributes, ``crypto`` generates, wraps and uses keys, ``protocol`` has the
  parts of KMIP that the gateway does not need.
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
