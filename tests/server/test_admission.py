"""The options that say who may come: what is refused, and what is said loudly."""

from __future__ import annotations

import contextlib
import grp
import os
import stat

import pytest

from curved import said
from pickledbd import access, config
from pickledbd.endpoints import CannotServe, group_number
from pickledbd_client import NotAllowed, PickleDB
from pickledbd_client.keygen import make
from pickledbd_client.starting import lock_path
from pickledbd_protocol import owner_told
from support import PATIENCE, Daemon, in_fork, run


@pytest.fixture
def files(tmp_path):
    """Options of a daemon with keys."""
    secret, _ = make("daemon", tmp_path)
    (tmp_path / "keys").mkdir()
    return "--curve-key", secret, "--authorized-keys", tmp_path / "keys"


BEYOND = "tcp://0.0.0.0:7431"


def refused(location, *options):
    status, out, err = run(location, *options)
    assert (status, out) == (1, "")
    assert len(err.splitlines()) == 1
    return err


@pytest.mark.parametrize("option", ["--bind", "--bind-read-only"])
def test_beyond_loopback_tcp_is_not_served_without_keys(location, option):
    err = refused(location, option, BEYOND)
    assert "loopback only" in err
    assert "--curve-key" in err
    assert not location.exists()


def test_half_of_the_keys_is_not_enough(location, files):
    for half in (files[:2], files[2:]):
        assert "belong together" in refused(location, "--bind", "tcp://127.0.0.1:*", *half)


def test_keys_are_for_tcp(location, files, tmp_path):
    assert "is for tcp" in refused(location, *files)
    assert "is for tcp" in refused(location, "--bind", f"ipc://{tmp_path}/s", *files)


def test_keys_that_others_can_read_are_refused(location, files):
    os.chmod(files[1], 0o644)
    assert "chmod 600" in refused(location, "--bind", "tcp://127.0.0.1:*", *files)


def test_insecure_is_said_loudly_and_does_not_go_with_keys(location, files):
    err = refused(location, "--bind", "tcp://127.0.0.1:*", "--insecure", *files)
    assert "choose one" in err
    daemon = Daemon(location, "--bind", "tcp://127.0.0.1:*", "--insecure")
    text = said(daemon, "--insecure")
    assert "WHOEVER REACHES tcp://127.0.0.1:* MAY READ AND CHANGE EVERYTHING" in text
    with PickleDB(daemon.endpoint) as db:
        assert db.ping()
    daemon.check_and_stop()


def test_an_endpoint_cannot_be_for_both(location, tmp_path):
    endpoint = f"ipc://{tmp_path}/s"
    err = refused(location, "--bind", endpoint, "--bind-read-only", endpoint)
    assert endpoint in err


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ipc://{}/s", "ipc://{}//s"),
        ("ipc://{}/s", "ipc://{}/link/s"),
        ("tcp://127.0.0.1:7431", "tcp://localhost:07431"),
        ("tcp://[::1]:7431", "tcp://[0:0::1]:7431"),
    ],
)
def test_an_endpoint_is_the_same_however_it_is_written(location, tmp_path, one, other):
    (tmp_path / "link").symlink_to(tmp_path)
    one, other = one.format(tmp_path), other.format(tmp_path)
    err = refused(location, "--bind", one, "--bind-read-only", other)
    assert f"{other} cannot be for everything and only for reading" in err
    with contextlib.ExitStack() as stack:
        options = config.options([str(location), "--bind", one, "--bind", other])
        claims = access.claim_all(options, location, stack)
        assert [claim.endpoint for claim in claims] == [one]


def test_a_group_has_to_be_there_and_to_be_of_use(location, tmp_path):
    bind = ("--bind", f"ipc://{tmp_path}/s")
    assert "no such group" in refused(location, *bind, "--group", "no-such-group")
    name = grp.getgrgid(os.getegid()).gr_name
    assert "--bind ipc:///PATH" in refused(location, "--group", name)


def root_only():
    if os.geteuid() != 0:
        pytest.skip("only root can take the part of other users")


def as_user(uid, groups, work):
    """Do `work` as somebody else; whether it returned."""

    def act():
        os.setgroups(groups)
        os.setgid(groups[0] if groups else 65534)
        os.setuid(uid)
        work()

    return in_fork(act)


@pytest.fixture
def open_folder(tmp_path):
    """A directory that every user can reach."""
    for each in (tmp_path, *tmp_path.parents):
        if str(each).startswith("/tmp/"):
            os.chmod(each, 0o755)
    return tmp_path


def test_a_group_may_connect_and_keep_what_it_reads_and_others_may_not(location, open_folder):
    root_only()
    group = next(each for each in grp.getgrall() if each.gr_gid not in (0, 65534))
    socket = open_folder / "s"
    daemon = Daemon(location, "--bind", f"ipc://{socket}", "--group", group.gr_name, umask=0o077)
    found = os.stat(socket)
    assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (group.gr_gid, 0o660)

    def member():
        with PickleDB(daemon.endpoint, timeout=PATIENCE) as db:
            db["a"] = 1
            assert db["a"] == 1
            assert db._cache.young, "the counters can be read, too"
        assert owner_told(lock_path(socket).read_bytes())["state"] == "serving"

    def other():
        with pytest.raises(NotAllowed):
            PickleDB(daemon.endpoint)

    assert as_user(12345, [group.gr_gid], member)
    assert as_user(12345, [], other)
    daemon.check_and_stop()


def test_a_group_of_which_the_user_is_no_member_is_refused():
    root_only()
    group = next(each for each in grp.getgrall() if each.gr_gid not in (0, 65534))

    def other():
        with pytest.raises(CannotServe, match=f"{group.gr_name}: uid 12345 is not in this group"):
            group_number(group.gr_name)

    assert as_user(12345, [], other)
    assert as_user(12345, [group.gr_gid], lambda: group_number(group.gr_name))
