"""``kmip-lab report``: the application note's experiment, repeated on simulated key managers.

From top to bottom: ``command`` is the command line; ``page`` writes the page, of ``sections`` in ``markdown``, and
``charts`` draws; ``experiment`` goes through the measurements, on the programs of ``house``; ``results`` is what
comes out; ``costs`` derives what the simulated key managers cost from ``note``, the note's own numbers; ``cases`` and
``links`` have what is compared.
"""
