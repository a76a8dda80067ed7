"""``kmip-gateway decode``: TTLV bytes as a tree, as JSON or as XML, for people. Nothing here serves a client."""
