"""A load-balancing KMIP proxy that pools mutual-TLS sessions to key managers."""
