"""The language: KMIP's encoding and messages. No I/O; knows nothing of the house."""
