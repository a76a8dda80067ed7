"""No clock decides over a test: not Hypothesis' deadline for an example either."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
