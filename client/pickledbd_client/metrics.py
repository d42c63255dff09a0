"""`pickledbctl metrics`: a daemon's `info` as metrics for Prometheus.

May live here: which member of `info` (SPEC.md) is which metric, and an HTTP server that tells them.
A process of its own, so that whoever looks costs the daemon one `info`. Names and units follow
Prometheus' conventions (prometheus.io/docs/practices/naming). It needs the extra `metrics`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import signal
import socket
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from threading import Lock
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pickledbd_client.curve import CurveFiles
from pickledbd_client.database import PickleDB
from pickledbd_client.route import DEFAULT_ENDPOINT
from pickledbd_protocol import COMMANDS, PickleDBError
from pickledbd_protocol.errors import BY_CODE

SCRAPE_SECONDS = 3.0
"""How long a daemon that does not answer is waited for: less than Prometheus waits."""

MILLI = 1e-3

Row = tuple[str, str, str]
"""A member of `info`, the metric, and what is told about it."""

GAUGES: list[Row] = [
    ("keys", "keys", "Keys in the database."),
    ("clients", "clients", "Connections."),
    ("dirty", "unsaved_changes", "Changes that the data file does not hold."),
    ("uptime", "uptime_seconds", "Since the start of the daemon."),
    ("last_save_time", "last_save_timestamp_seconds", "When the last save that succeeded ended."),
    ("last_save_duration_ms", "last_save_duration_seconds", "How long that save took."),
    ("journal_bytes", "journal_bytes", "What the journal holds and the data file does not."),
    ("locks", "locks_held", "Locks that are held."),
    ("waiting", "waiting_requests", "Requests that wait for a lock or for a change."),
    ("longest_slice_ms", "longest_slice_seconds", "The longest that all were kept waiting."),
    ("memory_bytes", "memory_bytes", "What keys and values take in memory."),
    ("unread_bytes", "unread_bytes", "Replies that wait for their clients to read them."),
    ("resident_bytes", "resident_memory_bytes", "Memory that the daemon has."),
    ("descriptors", "open_descriptors", "Descriptors that the daemon has open."),
    ("descriptors_max", "max_descriptors", "Descriptors that it may have open."),
]

FLAGS: list[Row] = [
    ("saving", "saving", "1 while a save is going on."),
    ("writes_refused", "writes_refused", "1 while writes are refused: the journal has failed."),
    ("last_save_error", "last_save_failed", "1 if the last save failed."),
]

COUNTERS: list[Row] = [
    ("slow_operations", "slow_operations", "Operations that were slow (--slow-ms)."),
    ("connections_accepted", "connections_accepted", "Connections that were made."),
    ("connections_refused", "connections_refused", "Connections that were refused."),
    ("hung_up", "hung_up", "Connections on which the daemon has hung up."),
    ("bytes_in", "received_bytes", "Bytes of messages that came."),
    ("bytes_out", "sent_bytes", "Bytes of messages to clients."),
    ("expired_keys", "expired_keys", "Keys removed since their time was over."),
    ("changes_told", "changes_told", "Changes that watchers were told of."),
    ("locks_granted", "locks_granted", "Locks that were granted."),
    ("large_batches", "large_batches", "Batches carried out beside other requests."),
    ("saves", "saves", "Saves that succeeded."),
    ("saves_failed", "saves_failed", "Saves that failed."),
    ("save_seconds", "save_seconds", "Time that the saves that succeeded took."),
    ("journal_written", "journal_written_bytes", "Bytes appended to journals."),
    ("journal_syncs", "journal_syncs", "How often the journal was synced to the disk."),
    ("log_lines_lost", "log_lines_lost", "Lines of the log that nobody read in time."),
    ("cpu_seconds", "cpu_seconds", "Processor time of the daemon."),
]

INFORMATION = ("version", "durability", "python", "libzmq", "orjson")


class Exporter(Collector):
    """Asks the daemon at `location`, which may come and go, whenever metrics are asked for."""

    def __init__(
        self,
        location: str | None,
        timeout: float = SCRAPE_SECONDS,
        curve: CurveFiles | None = None,
    ) -> None:
        self._location = location
        self._timeout = timeout
        self._curve = curve
        self._one_at_a_time = Lock()
        self._db: PickleDB | None = None
        self._failure: str | None = None
        self._label = location or os.environ.get("PICKLEDBD_URL") or DEFAULT_ENDPOINT
        """Of each metric: the same whether the daemon is there or not."""

    def collect(self) -> Iterable[Metric]:
        """All metrics; of a daemon that does not answer only `pickledbd_up`, 0."""
        told: dict[str, Any] = {}
        try:
            told = self._ask()
        except PickleDBError as error:
            self._tell(str(error))
        else:
            self._tell(None)
        yield self._gauge("up", "1 if the daemon answers.", bool(told))
        if told:
            yield from self._metrics(told)

    def _ask(self) -> dict[str, Any]:
        with self._one_at_a_time:
            if self._db is None:  # a daemon is looked at, never started
                self._db = PickleDB(
                    self._location,
                    timeout=self._timeout,
                    cache_bytes=0,
                    autostart=False,
                    curve=self._curve,
                )
            return self._db.info()

    def _tell(self, failure: str | None) -> None:
        """Say on stderr, once, that the daemon does not answer, and why; or that it does again."""
        if (failure is None) != (self._failure is None):
            sys.stderr.write(f"pickledbctl: {failure or f'{self._label} answers again'}\n")
        self._failure = failure

    def close(self) -> None:
        """Drop the connection."""
        if self._db is not None:
            self._db.close()

    def _metrics(self, told: dict[str, Any]) -> Iterator[Metric]:
        for member, name, about in GAUGES:
            value = told.get(member)  # there may be none yet, or the daemon may be an older one
            if value is not None:
                yield self._gauge(name, about, value * (MILLI if member.endswith("_ms") else 1))
        for member, name, about in FLAGS:
            yield self._gauge(name, about, bool(told.get(member)))
        for member, name, about in COUNTERS:
            if member in told:
                yield self._counter(name, about, {(): told[member]})
        # From 0 on, or the first of each would not be seen as an increase
        requests = dict.fromkeys(COMMANDS, 0) | told.get("requests", {})
        yield self._counter("requests", "Requests, by command.", requests, "command")
        errors = dict.fromkeys(BY_CODE, 0) | told.get("errors", {})
        yield self._counter("errors", "Requests answered by an error, by its code.", errors, "code")
        limits = GaugeMetricFamily("pickledbd_limit", "Limits.", labels=["location", "limit"])
        for name, most in told.get("limits", {}).items():
            if most is not None:
                limits.add_metric([self._label, name], most)
        yield limits
        if "slices" in told:
            yield self._slices(told["slices"], told["busy_seconds"])
        versions = {name: str(told[name]) for name in INFORMATION if name in told}
        information = InfoMetricFamily("pickledbd", "What the daemon is.", labels=["location"])
        information.add_metric([self._label], versions)
        yield information

    def _gauge(self, name: str, about: str, value: float) -> Metric:
        metric = GaugeMetricFamily(f"pickledbd_{name}", about, labels=["location"])
        metric.add_metric([self._label], float(value))
        return metric

    def _counter(self, name: str, about: str, counts: dict[Any, float], *labels: str) -> Metric:
        metric = CounterMetricFamily(f"pickledbd_{name}", about, labels=["location", *labels])
        for value, count in counts.items():
            metric.add_metric([self._label, *([value] if labels else [])], count)
        return metric

    def _slices(self, slices: dict[str, int], seconds: float) -> Metric:
        """Prometheus' buckets hold all that is below their bound."""
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in slices.items():
            total += count
            buckets.append((_le(bound), total))
        metric = HistogramMetricFamily(
            "pickledbd_slice_seconds",
            "For how long the loop kept all waiting at a time; the sum is how long it was busy.",
            labels=["location"],
        )
        metric.add_metric([self._label], buckets, seconds)
        return metric


def _le(bound: str) -> str:
    return "+Inf" if bound == "more" else f"{float(bound) * MILLI:g}"


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, address: Any) -> None:
        if isinstance(address, str):
            self.address_family = socket.AF_UNIX
            _remove_stale(Path(address))
        elif ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def get_request(self) -> Any:
        """As the library expects it: a socket's peer has no address."""
        connection, peer = super().get_request()
        return connection, peer or ("", 0)

    def server_bind(self) -> None:
        """As the library's, without a look-up of names."""
        umask = os.umask(0o117)  # a socket is its user's and the group's
        try:
            TCPServer.server_bind(self)
        finally:
            os.umask(umask)
        self.server_name, self.server_port = "localhost", 0
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    timeout = 10  # who connects and asks nothing

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name
        """Log nothing."""


def _remove_stale(path: Path) -> None:
    """Remove a socket that an exporter left when it was killed, and nothing else."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(os.fspath(path))
                except ConnectionRefusedError:
                    path.unlink()


def serve(
    location: str | None, listen: str, *, timeout: float, curve: CurveFiles | None, insecure: bool
) -> None:
    """Tell the metrics of the daemon at `location` to who asks at `listen`, until SIGTERM.

    `listen` is HOST:PORT or unix:/PATH; ValueError if it is no such, or beyond loopback and not
    to be `insecure`. OSError.
    """
    found = address(listen, insecure=insecure)
    exporter = Exporter(location, min(timeout, SCRAPE_SECONDS), curve)
    registry = CollectorRegistry()
    registry.register(exporter)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.closing(exporter), _Server(found) as server:
        server.set_app(make_wsgi_app(registry))
        where = listen
        if not isinstance(found, str):
            host, port, *_ = server.socket.getsockname()
            where = f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"
        try:
            sys.stdout.write(f"pickledbctl: metrics at {where}\n")
            sys.stdout.flush()
            server.serve_forever()
        finally:
            if isinstance(found, str):
                Path(found).unlink(missing_ok=True)


def address(listen: str, *, insecure: bool = False) -> str | tuple[str, int]:
    """Where to listen: the path of a socket, or host and port. ValueError says what is wrong.

    Beyond loopback only if it may be `insecure`.
    """
    if listen.startswith("unix:/"):
        return listen.removeprefix("unix:")
    parts = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+)):(\d{1,5})", listen)
    if parts is None:
        raise ValueError(f"{listen!r} is no place to listen at; HOST:PORT or unix:/PATH is")
    host = "127.0.0.1" if parts[2] == "localhost" else parts[1] or parts[2]
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise ValueError(f"{listen!r}: the host is to be an address, or localhost") from None
    if not (is_loopback or insecure):
        raise ValueError(
            f"{listen!r} is beyond this machine, and whoever reaches it may read the metrics; "
            "if that is meant, say --insecure"
        )
    return host, int(parts[3])
