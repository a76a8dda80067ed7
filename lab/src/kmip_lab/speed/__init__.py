"""``kmip-lab speed``: measure how many operations a minute a KMIP server does, as the application note's s_speed does.

From top to bottom: ``command`` is the command line, and ``options`` the options that name the server; ``campaign`` does
several measurements; ``processes`` starts the client processes and gathers their counts; ``client_process`` is the body
of a client process; ``measured_keys`` makes the keys that operations need, and destroys them; ``operations`` lists the
operations; ``session`` talks to the server; ``errors`` are the ways to fail, ``result`` holds counts and durations;
``target`` describes the server, and ``qclient`` reads that from a qClient configuration file.
"""
