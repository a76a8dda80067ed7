"""KMIP: its encoding and its messages. No I/O, and no import of other packages of the gateway but ``errors``."""
