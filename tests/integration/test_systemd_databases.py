"""Several databases, their options, and tcp, under a booted systemd."""

from __future__ import annotations

import pytest

from booted import marks, needs_root, readme
from support import wait_until

pytestmark = [*marks, needs_root]

CONFIG = "/etc/pickledbd/default.toml"


@pytest.fixture
def configured(machine):
    """Has the daemon started anew with an option file of this text; without one in the end."""

    def configure(text):
        machine.run(f"mkdir -p /etc/pickledbd; cat >{CONFIG} <<'END'\n{text}\nEND")
        return machine.try_run("systemctl reset-failed pickledbd; systemctl restart pickledbd")

    yield configure
    machine.run(f"rm -f {CONFIG}; systemctl reset-failed pickledbd.service pickledbd.socket")
    machine.run("systemctl restart pickledbd")


def test_the_example_configuration_is_installed_and_taken_as_the_readme_says(machine, configured):
    assert configured("")[0] == 0
    machine.run("editor() { sed -i 's/^#backups = 0/backups = 2/' $1; }\n" + readme("Options"))
    assert machine.show("ActiveState") == "active"
    for _ in range(4):
        machine.ctl("incr", "saves")
        machine.ctl("save")
    backups = machine.run("ls /var/lib/pickledbd").split()
    assert len([name for name in backups if name.startswith("default.db.backup-")]) == 2
    machine.run("rm /var/lib/pickledbd/default.db.backup-*")


def test_the_daemon_does_what_its_configuration_says(machine, configured):
    assert configured('durability = "fsync"\nlog-level = "debug"')[0] == 0
    lines = "print(PickleDB().info()['durability'])", "import os; print(os.getuid(), os.getpid())"
    durability, who = machine.python(*lines, user="member").splitlines()
    assert durability == "fsync"
    uid, pid = who.split()
    entries = "journalctl --unit=pickledbd PICKLEDBD_EVENT=connected"
    assert f"uid {uid}, pid {pid}" in machine.run(f"{entries} PICKLEDBD_PEER_UID={uid}")


def test_a_wrong_configuration_is_told_and_not_tried_again(machine, configured):
    assert configured("durabilty = 'fsync'")[0] != 0
    assert machine.show("ActiveState") == "failed"
    assert machine.show("NRestarts") == "0"
    journal = machine.run("journalctl --unit=pickledbd --lines=10")
    assert f"{CONFIG}: there is no key durabilty; did you mean durability?" in journal


def test_systemctl_status_shows_what_there_is(machine):
    machine.run("systemctl restart pickledbd")
    machine.ctl("set", "some", "thing")
    keys = machine.python("print(PickleDB().info()['keys'])")

    def told(part):
        wait_until(lambda: part in machine.show("StatusText"), f"{part} to be told")

    told(f"{int(keys):,} keys; 0 clients; 1 unsaved changes; no save yet")
    machine.ctl("save")
    told("0 unsaved changes; saved at 20")


def test_further_databases_run_beside_the_default_as_the_readme_says(machine):
    machine.ctl("set", "which", "default")
    assert "answered" in machine.run(readme("Several databases"))
    endpoint = "ipc:///run/pickledbd/orders.sock"
    machine.ctl("-e", endpoint, "set", "which", "orders", user="member")
    machine.run("systemctl start pickledbd@a-b")
    machine.ctl("-e", "ipc:///run/pickledbd/a-b.sock", "set", "which", "a-b")
    said = machine.run("systemd-analyze security --no-pager --threshold=10 pickledbd@orders")
    assert "Overall exposure level for pickledbd@orders.service: 0." in said
    machine.run("systemctl stop pickledbd@a-b.socket")
    machine.run("systemctl restart pickledbd@orders")
    assert machine.ctl("-e", endpoint, "get", "--raw", "which") == "orders"
    assert machine.ctl("get", "--raw", "which") == "default"
    status, told = machine.try_run(
        f"/opt/pickledbd/bin/pickledbctl -e {endpoint} ping", user="stranger"
    )
    assert (status, "not allowed" in told) == (3, True)
    machine.run("systemctl disable --now pickledbd@orders.socket pickledbd@orders.service")
    assert machine.run("cd /var/lib/pickledbd; cat orders.db a-b.db").count('"which":') == 2
    assert "orders.sock" not in machine.run("ls /run/pickledbd").split()


def test_the_default_is_no_further_database(machine):
    assert machine.try_run("systemctl start pickledbd@default")[0] != 0
    assert machine.show("ActiveState", "pickledbd@default.service") == "inactive"
    assert "answered" in machine.ctl("ping")


def test_a_database_is_started_by_its_first_client(machine):
    machine.run("systemctl start pickledbd@lazy.socket")
    assert machine.show("ActiveState", "pickledbd@lazy.service") == "inactive"
    assert "answered" in machine.ctl("-e", "ipc:///run/pickledbd/lazy.sock", "ping", user="member")
    machine.run("systemctl stop pickledbd@lazy.socket")
    assert machine.show("ActiveState", "pickledbd@lazy.service") == "inactive"


def test_tcp_is_served_with_keys_as_the_readme_says_by_a_service_without_a_network(
    machine, configured
):
    assert configured("")[0] == 0
    by_key = readme("tcp", 2).replace("pickledbctl", "/opt/pickledbd/bin/pickledbctl")
    by_key = by_key.replace("db.example", "127.0.0.1").replace(" daemon.key", " /srv/daemon.key")
    ping = by_key.splitlines()[-1]
    try:
        machine.run(readme("tcp"))
        machine.run("cp /etc/pickledbd/daemon.key /srv")
        machine.ctl("set", "by", "ipc", user="member")
        assert "answered" in machine.run(f"cd /srv; {by_key}")
        assert machine.run("cd /srv; " + ping.replace("ping", "get --raw by")) == "ipc"
        machine.run("systemctl restart pickledbd")
        assert "answered" in machine.run(f"cd /srv; {ping}")
        without = ping.replace("--curve ann.key_secret /srv/daemon.key", "")
        status, told = machine.try_run(without)
        assert (status, "it asks for a key" in told) == (3, True)
        machine.run("cd /etc/pickledbd/keys; mkdir read-only; mv *.key read-only")
        write = ping.replace("ping", "set by tcp")
        wait_until(
            lambda: "set is not allowed to who may" in machine.try_run(f"cd /srv; {write}")[1],
            "who may only read to be refused",
        )
        machine.run("rm -r /etc/pickledbd/keys/read-only")
        wait_until(lambda: "let in the key" in machine.try_run(f"cd /srv; {ping}")[1], "a refusal")
        journal = "journalctl --unit=pickledbd --lines=20 PICKLEDBD_EVENT=refused"
        wait_until(lambda: "refused 127.0.0.1:" in machine.run(journal), "it to be told")
        said = machine.run("systemd-analyze security --no-pager --threshold=15 pickledbd.service")
        assert "Overall exposure level for pickledbd.service: 0." in said
    finally:
        machine.run("rm -rf /etc/systemd/system/pickledbd.socket.d /etc/pickledbd")
        machine.run("systemctl daemon-reload; systemctl restart pickledbd.socket pickledbd.service")


def test_a_group_that_may_only_read_has_a_socket_of_its_own_as_the_readme_says(machine):
    machine.ctl("set", "greeting", "to readers")
    at = ("-e", "ipc:///run/pickledbd-readers.sock")
    try:
        assert machine.run(readme("Only for reading")).endswith('"to readers"')
        machine.run("useradd --groups pickledbd-readers reader")
        for _ in range(2):
            assert machine.ctl(*at, "get", "--raw", "greeting", user="reader") == "to readers"
            machine.run("systemctl restart pickledbd")
        told = machine.try_run(f"/opt/pickledbd/bin/pickledbctl {' '.join(at)} purge", "reader")
        assert (told[0], "is not allowed to who may only read" in told[1]) == (3, True)
        told = machine.try_run(f"/opt/pickledbd/bin/pickledbctl {' '.join(at)} ping", "stranger")
        assert (told[0], "not allowed to connect" in told[1]) == (3, True)
        assert machine.try_run("/opt/pickledbd/bin/pickledbctl ping", "reader")[0] == 3
    finally:
        machine.run("systemctl disable --now pickledbd-readers.socket")
        machine.run("rm /etc/systemd/system/pickledbd-readers.socket; systemctl daemon-reload")
        machine.run("systemctl restart pickledbd.socket pickledbd.service")


def test_backups_are_made_by_a_timer_and_restored_as_the_readme_says(machine):
    machine.ctl("set", "kept", "of that day", "--ttl", "1000")
    restore = readme("Backups", 2)
    try:
        _enabled, *made = machine.run(readme("Backups")).splitlines()
        day = made[0]
        assert [name.split(".annex")[0] for name in made] == [day] * 2
        machine.ctl("set", "kept", "of the next")
        machine.run(restore.replace("Mon.db", day))
        assert machine.ctl("get", "--raw", "kept") == "of that day"
        assert 900 < float(machine.ctl("ttl", "kept")) <= 1000
        machine.run("systemctl start pickledbd-backup.service")  # as in the next week
        machine.run("systemctl kill --kill-whom=main --signal=STOP pickledbd")
        machine.run("echo damaged >/var/lib/pickledbd/default.db")
        machine.run("systemctl kill --kill-whom=main --signal=KILL pickledbd")
        journal = "journalctl --unit=pickledbd --lines=20"
        wait_until(lambda: "default.db is not JSON" in machine.run(journal), "a start that fails")
        machine.run(readme("Backups", 3))
        machine.run(restore.replace("Mon.db", day))
        assert machine.ctl("get", "--raw", "kept") == "of that day"
        assert "pickledbd-backup.service" in machine.run("systemctl list-timers --no-pager")
    finally:
        machine.run("systemctl disable --now pickledbd-backup.timer")
        machine.run("rm /etc/systemd/system/pickledbd-backup.*; systemctl daemon-reload")


def test_tcp_for_everybody_is_refused(machine):
    with machine.changed("ListenStream=7431", unit="pickledbd.socket"):
        machine.run("systemctl stop pickledbd.socket")
        assert machine.try_run("systemctl start pickledbd")[0] != 0
        journal = machine.run("journalctl --unit=pickledbd --lines=10")
        assert "(pickledbd.socket), which was passed by the service manager, does not" in journal
        machine.run("systemctl stop pickledbd.socket")
    machine.run("systemctl reset-failed pickledbd.service; systemctl start pickledbd")


def test_the_daemons_key_may_be_a_credential_which_stays_roots_alone(machine, configured):
    """At all addresses, of IPv4 and IPv6."""
    keygen = "mkdir -p /srv/k; cd /srv/k; /opt/pickledbd/bin/pickledbctl keygen"
    machine.run(f"{keygen} daemon; {keygen} ann; {keygen} eve; chmod 600 daemon.key_secret")
    machine.run("mkdir -p /etc/pickledbd/keys; cp /srv/k/ann.key /etc/pickledbd/keys")
    with (
        machine.changed("LoadCredential=daemon.key_secret:/srv/k/daemon.key_secret"),
        machine.changed("ListenStream=7431", unit="pickledbd.socket"),
    ):
        machine.run("systemctl stop pickledbd.socket")
        status, told = configured(
            'curve-key = "/run/credentials/pickledbd.service/daemon.key_secret"\n'
            'authorized-keys = "/etc/pickledbd/keys"'
        )
        assert status == 0, told
        ctl = "/opt/pickledbd/bin/pickledbctl -e tcp://127.0.0.1:7431"
        by = ctl + " --curve {} /srv/k/daemon.key ping"
        assert "answered" in machine.run(by.format("/srv/k/ann.key_secret"))
        assert "not let in" in machine.try_run(by.format("/srv/k/eve.key_secret"))[1]
        wait_until(
            lambda: (
                "refused [::ffff:127.0.0.1]:"
                in machine.run("journalctl --unit=pickledbd PICKLEDBD_EVENT=refused")
            ),
            "it to be told",
        )
        machine.run("systemctl stop pickledbd.socket; rm -r /etc/pickledbd")
