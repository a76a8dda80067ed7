"""Shared by the demo, the measurements and the tests: programs, clients, requests, statistics, tables.

``programs`` starts gateways and key managers, ``configurations`` writes a gateway's configuration, ``clients`` opens
sessions, ``requests`` encodes requests, ``statistics`` and ``tables`` show results, ``progress`` shows progress,
``scrape`` reads a gateway's metrics, ``usage`` reads processor time and memory, ``interrupts`` handles signals.
"""
