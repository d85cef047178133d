"""Machines differ in speed: no test of this plugin has a deadline."""

from hypothesis import settings

settings.register_profile("plugin", deadline=None, derandomize=True)
settings.load_profile("plugin")
