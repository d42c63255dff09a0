"""The pickledbd daemon: one process that owns one pickleDB file and serves it over ZeroMQ."""

from pickledbd_protocol import __version__

__all__ = ["__version__"]
