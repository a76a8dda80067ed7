"""The side of the clients: listeners, handshakes, conversations and their limits."""
