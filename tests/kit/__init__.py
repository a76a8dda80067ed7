"""The helpers that tests share. No test imports another test module."""
