"""``kmip-lab report``: repeat the application note's experiment on simulated key managers.

From top to bottom: ``command`` is the command line; ``page`` writes the page from ``sections``, and ``charts`` draws;
``experiment`` makes the measurements, on the programs of ``environment``; ``results`` holds the results; ``costs``
derives the simulated key managers' costs from ``note``, the note's own numbers; ``cases`` lists the configurations that
are compared.
"""
