"""The side of the key managers: backends, their pools and sessions, and the choice among them."""
