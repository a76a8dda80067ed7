"""Tests of gateway.kmip, the language."""
