"""The dispatcher: one request in, one answer out.

The dispatcher asks the balancer for an order of backends, leases a session, and exchanges the request for an answer.
gateway/policy.py decides if a request that failed may be tried again: by the effect of running the request twice, and
by the stage that the failed try reached. One deadline covers all tries of a request. replication.py has the rules for
backends that do not all have the same objects.
"""

from gateway.dispatcher.answer import UNKNOWN_OUTCOME, Answer, refusal
from gateway.dispatcher.dispatcher import Dispatcher, Observer
from gateway.dispatcher.job import DispatcherSettings, Job
from gateway.dispatcher.replication import ReplicationPolicy

__all__ = [
    "UNKNOWN_OUTCOME",
    "Answer",
    "Dispatcher",
    "DispatcherSettings",
    "Job",
    "Observer",
    "ReplicationPolicy",
    "refusal",
]
