"""``kmip-lab speed``: how many operations a minute a KMIP server does, measured as the application note does it.

From top to bottom: ``command`` is the command line, and ``given`` its options; ``table`` shows results; ``campaign``
does several measurements; ``running`` starts the client processes and gathers what they count; ``worker`` is one of
them; ``making`` makes the keys that are needed, and takes them away; ``operations`` has what can be measured;
``session`` talks to the server, and ``discovery`` agrees on a version; ``trouble`` is what goes wrong, ``result``
what comes out; ``target`` says which server, and ``qclient`` reads that from a qClient configuration file. ``report``
repeats the note's experiment.
"""
