"""Helpers that several tests of the laboratory share."""
