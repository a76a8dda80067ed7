"""Helpers that the laboratory's tests share."""
