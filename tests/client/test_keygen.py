"""`pickledbctl keygen`, and what `curve` may be."""

from __future__ import annotations

import os
import stat

import pytest
import zmq
from zmq.auth import load_certificate

from pickledbd_client import NotAllowed, PickleDB, Unavailable, ctl
from pickledbd_client.curve import Curve, curve_of
from pickledbd_client.keygen import make


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_two_files_are_made_of_which_one_is_for_its_user_alone(tmp_path, capsys, umask):
    before = os.umask(umask)
    try:
        assert ctl.main(["keygen", "ann", "--dir", str(tmp_path)]) == 0
    finally:
        os.umask(before)
    secret, public = tmp_path / "ann.key_secret", tmp_path / "ann.key"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(public.stat().st_mode) == 0o644
    both, (only, nothing) = load_certificate(secret), load_certificate(public)
    assert (only, nothing) == (both[0], None)
    assert zmq.curve_public(both[1]) == only
    said = capsys.readouterr().out
    assert str(secret) in said
    assert str(public) in said
    assert "--authorized-keys" in said
    assert "--curve-key" in said
    assert both[1].decode() not in said


@pytest.mark.parametrize("there", ["ann.key", "ann.key_secret"])
def test_nothing_is_ever_overwritten(tmp_path, capsys, there):
    (tmp_path / there).write_text("mine")
    assert ctl.main(["keygen", "ann", "--dir", str(tmp_path)]) == 3
    assert (tmp_path / there).read_text() == "mine"
    assert os.listdir(tmp_path) == [there], "nor is half of a pair left"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{tmp_path / there} is there already" in said


@pytest.mark.parametrize("name", ["", "a/b", "../ann", ".ann", "a\nb", "a b"])
def test_a_name_is_one_of_a_file(tmp_path, capsys, name):
    assert ctl.main(["keygen", "--dir", str(tmp_path), "--", name]) == 3
    assert "no name of a key" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_directory_that_is_not_there_is_told(tmp_path, capsys):
    assert ctl.main(["keygen", "ann", "--dir", str(tmp_path / "nowhere")]) == 3
    assert "nowhere/ann.key_secret: No such file" in capsys.readouterr().err


def test_no_two_keys_are_the_same(tmp_path):
    keys = {load_certificate(make(name, tmp_path)[0]) for name in ("a", "b", "c")}
    assert len(keys) == 3


# What a client takes

ENDPOINT = "tcp://127.0.0.1:9"  # at which nobody is: the files are read before


@pytest.fixture
def files(tmp_path):
    return make("ann", tmp_path)[0], make("daemon", tmp_path)[1]


@pytest.mark.parametrize("wrong", ["keys", ("a",), ("a", "b", "c"), 5, ("a", 5), (None, "b"), {}])
def test_curve_is_a_pair_of_files(wrong):
    with pytest.raises(ValueError, match="curve is a pair"):
        PickleDB(ENDPOINT, curve=wrong)


def test_files_that_are_no_keys_are_named(tmp_path, files):
    own, daemon = files
    odd = tmp_path / "odd.key"
    odd.write_text('public-key = "too short"')
    for curve, named, cls in (
        ((tmp_path / "nowhere", daemon), "nowhere: No such file", Unavailable),
        ((own, tmp_path / "nowhere"), "nowhere: No such file", Unavailable),
        ((daemon, daemon), f"{daemon} holds no secret key", Unavailable),
        ((odd, daemon), f"{odd} is no certificate", Unavailable),
        ((own, odd), f"{odd} is no certificate", Unavailable),
        ((own, tmp_path), "Is a directory", Unavailable),
    ):
        with pytest.raises(cls, match=named):
            PickleDB(ENDPOINT, curve=curve)
    mine, others = own.read_text(), make("bob", tmp_path)[0].read_text()
    own.write_text(mine.replace(mine.split('"')[3], others.split('"')[3]))
    with pytest.raises(Unavailable, match=f"two keys in {own} do not belong together"):
        PickleDB(ENDPOINT, curve=files)
    os.chmod(own, 0o640)
    with pytest.raises(NotAllowed, match=f"chmod 600 {own}"):
        PickleDB(ENDPOINT, curve=files)


def test_the_environment_names_them_with_a_colon_between(files, monkeypatch, tmp_path):
    own, daemon = files
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PICKLEDBD_CURVE", "ann.key_secret:daemon.key")
    assert curve_of(None).keys() == Curve(own, daemon).keys()
    assert curve_of((own, own)).files == (str(own), str(own)), "what is said goes first"
    for wrong in ("ann.key_secret", ":daemon.key", "ann.key_secret:"):
        monkeypatch.setenv("PICKLEDBD_CURVE", wrong)
        with pytest.raises(Unavailable, match="PICKLEDBD_CURVE"):
            PickleDB(ENDPOINT)
    monkeypatch.setenv("PICKLEDBD_CURVE", "")
    assert curve_of(None) is None


def test_keys_are_for_tcp_alone(daemon, files):
    """So that a program can be given them wherever its data is."""
    os.unlink(files[0])
    with daemon.client(curve=files) as db, PickleDB(daemon.endpoint, curve=files) as other:
        db["a"] = 1
        assert other["a"] == 1


def test_where_nobody_listens_is_told_as_without_keys(files):
    for curve in (None, files):
        with pytest.raises(Unavailable, match="Connection refused; start one with"):
            PickleDB(ENDPOINT, curve=curve)
