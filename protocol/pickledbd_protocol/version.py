"""The version of the distribution, and of what it speaks: the only place that says either."""

__version__ = "0.1.0"

PROTOCOL_VERSION = 1
"""The wire protocol of SPEC.md that this code speaks."""
