"""Turn Hypothesis' deadline for an example off: no test depends on the machine's speed."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
