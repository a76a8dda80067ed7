"""Tests of gateway.kmip."""
