"""The dispatcher: one request in, one answer out.

It asks the balancer for an order, leases a session, has the request exchanged, and decides by two tables, what the
request would do if it ran twice and how far the attempt came, whether it may be tried again. One deadline covers all.
"""

from gateway.dispatcher.answer import Answer
from gateway.dispatcher.dispatcher import Dispatcher
from gateway.dispatcher.job import DispatcherSettings
from gateway.dispatcher.knowledge import Knowledge

__all__ = ["Answer", "Dispatcher", "DispatcherSettings", "Knowledge"]
