"""The comparison: the gateway beside HAProxy, nginx and no proxy at all, on the same work."""
