"""Hypothesis, without what makes a test depend on the machine or on the run before."""

from hypothesis import settings

settings.register_profile("everywhere", deadline=None, database=None)
settings.load_profile("everywhere")
