"""The dispatcher: one request in, one answer out.

It asks the balancer for an order, leases a session, has the request exchanged, and decides by gateway/policy.py if a
request that failed may be tried again: by the effect of running it twice, and by the stage that the attempt reached.
One deadline covers all. replication.py explains how it treats backends that do not all have the same objects.
"""

from gateway.dispatcher.answer import Answer
from gateway.dispatcher.dispatcher import Dispatcher
from gateway.dispatcher.job import DispatcherSettings
from gateway.dispatcher.replication import ReplicationPolicy

__all__ = ["Answer", "Dispatcher", "DispatcherSettings", "ReplicationPolicy"]
