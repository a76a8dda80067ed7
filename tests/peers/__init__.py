"""Independent clients and servers of KMIP, tried directly and through the gateway: ``make peers``."""
