"""`pickledbctl metrics`: what Prometheus is told, by which names, and where."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from pickledbd_client import metrics
from pickledbd_client.metrics import Exporter
from support import PATIENCE, Daemon

ALERTS = Path(__file__).parents[2] / "systemd" / "alerts.yml"


class _Unix(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)


class Running:
    """A `pickledbctl metrics`."""

    def __init__(self, *options, listen="127.0.0.1:0"):
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pickledbd_client.ctl", *map(str, options)),
                *("metrics", "--listen", listen),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert select.select([self.process.stdout], [], [], PATIENCE)[0], "no ready line"
        self.where = self.process.stdout.readline().rpartition(" at ")[2].strip()

    def get(self, accept="*/*"):
        """What it tells: the type and the text."""
        if self.where.startswith("unix:"):
            connection = _Unix(self.where.removeprefix("unix:"))
        else:
            connection = http.client.HTTPConnection(self.where.split("/")[2], timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics", headers={"Accept": accept})
            reply = connection.getresponse()
            assert reply.status == 200
            return reply.headers["Content-Type"], reply.read().decode()

    def samples(self):
        """All samples, by their name and labels but for the location."""
        found = {}
        for family in text_string_to_metric_families(self.get()[1]):
            for sample in family.samples:
                labels = tuple(v for name, v in sample.labels.items() if name != "location")
                found[sample.name, *labels] = sample.value
        return found

    def up(self):
        return self.samples()["pickledbd_up",]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        _, err = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, err
        return err


@pytest.fixture
def running():
    """Starts exporters, and ends them."""
    started = []

    def start(*options, **more):
        started.append(Running(*options, **more))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.stop()


@pytest.fixture
def exporter(daemon, running):
    return running("-f", daemon.location)


def test_counters_grow_by_what_is_asked(exporter, db):
    before = exporter.samples()
    for number in range(3):
        db.set("a", number)
    assert db.incr("b") == 1
    with pytest.raises(ValueError, match="not a number"):
        db.incr("a", by=1, default=0) if db.set("a", "x") else None
    db.save()
    after = exporter.samples()
    grown = {name: after[name] - before[name] for name in after if name[0].endswith("_total")}
    assert grown["pickledbd_requests_total", "set"] == 4
    assert grown["pickledbd_requests_total", "incr"] == 2
    assert grown["pickledbd_requests_total", "info"] == 1
    assert grown["pickledbd_errors_total", "invalid_value"] == 1
    assert grown["pickledbd_saves_total",] == 1
    assert grown["pickledbd_received_bytes_total",] > 100
    assert all(value >= 0 for value in grown.values())
    assert after["pickledbd_keys",] == 2
    assert after["pickledbd_last_save_timestamp_seconds",] > 1.7e9


def test_the_slices_are_a_histogram(exporter, db):
    db.set("a", 1)
    told = exporter.samples()
    buckets = [
        value for (name, *_), value in told.items() if name == "pickledbd_slice_seconds_bucket"
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == told["pickledbd_slice_seconds_count",] > 0
    assert 0 < told["pickledbd_slice_seconds_sum",] < db.info()["uptime"]


def test_the_names_are_those_of_prometheus_conventions(exporter, daemon):
    kind, text = exporter.get("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    families = list(openmetrics.text_string_to_metric_families(text))  # refuses what is none
    assert len(families) > 30
    for family in families:
        assert re.fullmatch(r"pickledbd(_[a-z]+)*", family.name)
        assert not re.search(r"_(ms|milliseconds|kb|mb)\b", family.name)
        assert family.documentation.endswith(".")
        for sample in family.samples:
            assert sample.labels["location"] == str(daemon.location)
    (about,) = [family for family in families if family.name == "pickledbd"]
    assert about.samples[0].labels["durability"] == "journal"


def test_all_that_info_tells_is_exported_but_for_what_is_no_number(db):
    told = set(db.info())
    exported = {member for member, _, _ in metrics.GAUGES + metrics.COUNTERS + metrics.FLAGS}
    exported |= {"requests", "errors", "limits", "slices", "busy_seconds", *metrics.INFORMATION}
    assert exported <= told
    assert told - exported == {
        *("pid", "protocol", "location", "endpoints", "read_only"),  # of one daemon, as it happens
        *("last_save_status", "slow"),  # told by numbers of others
    }


def test_a_daemon_may_be_missing_and_come_and_go(location, running):
    exporter = running("-f", location, "-t", "1")
    assert exporter.samples() == {("pickledbd_up",): 0}
    assert exporter.up() == 0
    assert not location.exists()  # to look is not to start one
    assert not Path(f"{location}.lock").exists()
    daemon = Daemon(location)
    with contextlib.closing(daemon.client()) as db:
        db.set("a", 1)
    assert exporter.samples()["pickledbd_requests_total", "set"] == 1
    daemon.stop()
    assert exporter.samples() == {("pickledbd_up",): 0}
    daemon = Daemon(location)
    told = exporter.samples()
    assert (told["pickledbd_up",], told["pickledbd_requests_total", "set"]) == (1, 0)
    daemon.kill()
    assert exporter.up() == 0
    lines = exporter.stop().splitlines()  # of each change one
    assert len(lines) == 5
    assert f"cannot reach {location}" in lines[0]
    assert [line.endswith("answers again") for line in lines] == [False, True, False, True, False]


def test_a_daemon_that_hangs_is_not_waited_for_long(exporter, daemon):
    assert exporter.up() == 1
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        assert exporter.up() == 0
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    assert exporter.up() == 1


def test_a_scrape_costs_the_daemon_one_info(exporter, db):
    exporter.up()
    before = db.info()["requests"]
    exporter.up()
    after = db.info()["requests"]
    assert {name: after[name] - before.get(name, 0) for name in after} == {
        name: 2 if name == "info" else 0 for name in after
    }


def test_it_can_be_served_at_a_socket_that_the_group_may_use(daemon, running, tmp_path):
    path = tmp_path / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(os.fspath(path))
    exporter = running("-f", daemon.location, listen=f"unix:{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert exporter.up() == 1
    exporter.stop()
    assert not path.exists()


def fails(*options):
    ended = subprocess.run(
        [sys.executable, "-m", "pickledbd_client.ctl", *map(str, options)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    return ended.returncode, line


def test_what_stands_at_the_path_is_not_touched(daemon, running, tmp_path):
    path = tmp_path / "metrics.sock"
    path.write_text("mine")
    listen = ("metrics", "--listen", f"unix:{path}")
    assert fails(*listen) == (
        3,
        f"pickledbctl: cannot listen at unix:{path}: Address already in use",
    )
    assert path.read_text() == "mine"
    path.unlink()
    exporter = running("-f", daemon.location, listen=f"unix:{path}")
    assert fails(*listen)[0] == 3
    assert exporter.up() == 1


def test_a_port_that_is_taken_is_told(exporter):
    where = exporter.where.split("/")[2]
    line = f"pickledbctl: cannot listen at {where}: Address already in use"
    assert fails("metrics", "--listen", where) == (3, line)


@pytest.mark.parametrize("listen", ["0.0.0.0:9431", "[::]:9431", "10.1.2.3:9431"])
def test_beyond_the_machine_only_if_it_is_said_to_be_meant(listen):
    status, line = fails("metrics", "--listen", listen)
    assert (status, "--insecure" in line, listen in line) == (2, True, True)
    assert metrics.address(listen, insecure=True)[1] == 9431


@pytest.mark.parametrize("listen", ["9431", "here:9431", "unix:x", "", "[::1]", "127.0.0.1:999999"])
def test_what_is_no_place_to_listen_at_is_refused(listen):
    status, line = fails("metrics", "--listen", listen)
    assert (status, repr(listen) in line) == (2, True)


def test_loopback_is_known_by_all_its_names():
    assert metrics.address("localhost:1") == ("127.0.0.1", 1)
    assert metrics.address("127.0.0.1:9431") == ("127.0.0.1", 9431)
    assert metrics.address("[::1]:9431") == ("::1", 9431)
    assert metrics.address("unix:/run/x.sock") == "/run/x.sock"


def test_without_the_extra_it_says_what_is_missing():
    script = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from pickledbd_client.ctl import main; sys.exit(main(['metrics']))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 3
    assert ended.stderr.count("\n") == 1
    assert "pip install 'pickledbd[metrics]'" in ended.stderr


def test_the_alerts_ask_for_metrics_that_there_are(db):
    db.save()
    with contextlib.closing(Exporter(db.location)) as exporter:
        samples = [sample for family in exporter.collect() for sample in family.samples]
    names = {sample.name for sample in samples}
    text = ALERTS.read_text(encoding="utf-8")
    asked = set(re.findall(r"\bpickledbd_\w+", text))
    assert asked <= names
    bounds = {sample.labels["le"] for sample in samples if "le" in sample.labels}
    assert set(re.findall(r'le="([^"]+)"', text)) <= bounds
    # Two machines' databases may be of one location: what is divided is to be of one instance
    divided = re.findall(r"/ (.*) pickledbd_limit", text)
    assert divided == ["ignoring(limit)"] * 3
    alerts = text.split("- alert: ")[1:]
    assert len(alerts) >= 8
    for alert in alerts:
        assert re.search(r"^ +expr: ", alert, re.MULTILINE)
        assert re.search(r"^ +summary: ", alert, re.MULTILINE)
        assert re.search(r"^ +description: .*\.", alert, re.MULTILINE | re.DOTALL)
