"""The audit trail: a line of JSON for each request and each event, in a chain of hashes (docs/audit.md)."""
