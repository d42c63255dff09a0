"""Which keys are let in, by the files in a directory; and the daemon's own."""

from __future__ import annotations

import logging
import os
import shutil

import pytest
from zmq.auth import create_certificates, load_certificate

from pickledbd import keys as keys_module
from pickledbd.endpoints import CannotServe
from pickledbd.keys import Authorized, Key, own_key
from pickledbd_client.keygen import make


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "keys").mkdir()
    return tmp_path / "keys"


@pytest.fixture
def public(tmp_path):
    """Makes a key; its public text."""

    def public(name):
        if not (tmp_path / f"{name}.key").exists():
            make(name, tmp_path)
        return load_certificate(tmp_path / f"{name}.key")[0].decode()

    return public


@pytest.fixture
def put(tmp_path, folder, public):
    """Puts a key into the directory; its public text."""

    def put(name, there="."):
        text = public(name)
        (folder / there).mkdir(exist_ok=True)
        shutil.copy(tmp_path / f"{name}.key", folder / there)
        return text

    return put


def test_keys_are_known_by_the_names_of_their_files(folder, put):
    ann, bob = put("ann"), put("bob", "read-only")
    keys = Authorized(folder)
    assert keys.get(ann) == Key("ann", read_only=False)
    assert keys.get(bob) == Key("read-only/bob", read_only=True)
    assert len(keys) == 2
    assert keys.get("x" * 40) is None


def test_who_stands_in_both_may_only_read(folder, put):
    ann = put("ann")
    put("ann", "read-only")
    assert Authorized(folder).get(ann).read_only


def test_zeromqs_own_certificates_are_taken(folder):
    create_certificates(folder, "zmq")
    assert len(Authorized(folder)) == 1


def test_what_is_none_is_told_once_and_lets_nobody_in(folder, put, caplog):
    ann = put("ann")
    secret = folder / "secret.key"
    create_certificates(folder, "whole")
    os.rename(folder / "whole.key_secret", secret)
    os.unlink(folder / "whole.key")
    (folder / "empty.key").write_bytes(b"")
    (folder / "odd.key").write_bytes(b"public-key\n")
    (folder / "short.key").write_bytes(b'public-key = "abc"\n')
    (folder / "wrong.key").write_bytes(b'public-key = "' + b"~" * 40 + b'"\n')
    (folder / "large.key").write_bytes(b"#" * 2**17)
    (folder / "gone.key").symlink_to(folder / "nowhere")
    (folder / "folder.key").mkdir()
    os.mkfifo(folder / "pipe.key")
    (folder / "README").write_text("no key")
    keys = Authorized(folder)
    for _ in range(3):
        assert keys.look()
        assert list(keys._keys) == [ann]
    complaints = [record.getMessage() for record in caplog.records]
    assert len(complaints) == 9
    assert any("secret.key" in each and "secret key" in each for each in complaints)
    (folder / "odd.key").write_bytes(b"else, and longer\n")
    keys.look()
    assert len(caplog.records) == 10, "it is wrong in another way"


@pytest.mark.parametrize("settled", [False, True])
def test_changes_of_all_kinds_are_seen(folder, put, public, monkeypatch, settled):
    if settled:  # else a file that was changed just now is read each time
        monkeypatch.setattr(keys_module, "SETTLED_NS", -1)
    tmp_path = folder.parent
    keys = Authorized(folder)
    ann, bob = put("ann"), public("bob")
    assert keys.get(ann) is None
    keys.look()
    assert keys.changed
    keys.changed = False
    keys.look()
    assert not keys.changed
    assert keys.get(ann)
    os.replace(tmp_path / "bob.key", folder / "ann.key")
    keys.look()
    assert (keys.get(ann), keys.get(bob)) == (None, Key("ann", read_only=False))
    (folder / "ann.key").write_bytes((tmp_path / "ann.key").read_bytes())
    keys.look()
    assert (keys.get(ann), keys.get(bob)) == (Key("ann", read_only=False), None)
    (folder / "ann.key").unlink()
    keys.look()
    assert (len(keys), keys.changed) == (0, True)


def test_who_comes_meets_the_files_as_they_are_at_that_moment(folder, put):
    keys = Authorized(folder)
    ann = put("ann")
    assert keys.find(ann)
    os.unlink(folder / "ann.key")
    assert keys.find(ann) is None
    bob = put("bob", "read-only")
    assert keys.find(bob).read_only


def test_a_long_look_is_done_in_pieces_and_counts_when_it_is_complete(folder, put):
    made = [put(name) for name in "abcde"]
    keys = Authorized(folder)
    for name in "abcde":
        os.unlink(folder / f"{name}.key")
    new = put("f")
    looks = 1
    while not keys.look(until=0.0):
        looks += 1
        assert len(keys) in (5, 1)
    assert looks > 1 or len(keys) == 1
    assert all(keys.get(each) is None for each in made)
    assert keys.get(new)


def test_many_files_are_looked_at_less_often_but_what_comes_or_goes_is_seen(
    folder, put, public, monkeypatch
):
    monkeypatch.setattr(keys_module, "SETTLED_NS", -1)  # as if all had been there for long
    ann, bob = put("ann"), public("bob")
    keys = Authorized(folder)
    never, now = float("inf"), 0.0
    monkeypatch.setattr(keys_module, "LOOK_SHARE", 1e-9)  # as if there were very many
    assert keys.look_again(never)
    (folder / "ann.key").write_bytes((folder.parent / "bob.key").read_bytes())
    assert keys.look_again(never)
    assert keys.get(ann), "a file that was rewritten has to wait"
    carl = put("carl")
    assert not keys.look_again(now)
    assert keys.look_again(never)
    assert (keys.get(ann), bool(keys.get(bob)), bool(keys.get(carl))) == (None, True, True)
    os.unlink(folder / "carl.key")
    assert keys.look_again(never)
    assert keys.get(carl) is None
    monkeypatch.setattr(keys_module, "LOOK_SHARE", 1e9)  # as if there were few
    put("dora")
    assert keys.look_again(never)
    (folder / "dora.key").write_bytes((folder / "ann.key").read_bytes())
    assert keys.look_again(never)
    assert keys.get(bob).name == "dora"


def test_a_directory_that_is_gone_lets_nobody_in(folder, put, caplog):
    ann = put("ann")
    keys = Authorized(folder)
    os.rename(folder, folder.with_name("moved"))
    keys.look()
    assert (keys.get(ann), len(keys)) == (None, 0)
    assert len(caplog.records) == 1
    os.rename(folder.with_name("moved"), folder)
    keys.look()
    assert keys.get(ann)


def test_a_directory_that_is_not_there_at_the_start_is_refused(tmp_path):
    with pytest.raises(CannotServe, match=r"authorized keys.*nowhere"):
        Authorized(tmp_path / "nowhere")


@pytest.mark.parametrize("where", [".", "read-only"])
def test_a_directory_in_which_everybody_may_put_keys_is_refused(folder, where):
    (folder / "read-only").mkdir()
    os.chmod(folder / where, 0o775)
    Authorized(folder)
    os.chmod(folder / where, 0o777)
    with pytest.raises(CannotServe, match=f"chmod o-w {folder / where},"):
        Authorized(folder)


def test_the_daemons_key_is_its_own_alone(tmp_path, monkeypatch):
    secret, public = make("daemon", tmp_path)
    assert own_key(secret) == tuple(each.decode() for each in load_certificate(secret))
    for mode in (0o644, 0o640, 0o604, 0o620):
        os.chmod(secret, mode)
        with pytest.raises(CannotServe, match="chmod 600"):
            own_key(secret)
    os.chmod(secret, 0o440)
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(secret).st_uid + 1)
    own_key(secret)  # root's, for a group, as the credentials of systemd look
    os.chmod(secret, 0o444)
    with pytest.raises(CannotServe, match="chmod 600"):
        own_key(secret)
    with pytest.raises(CannotServe, match=r"daemon\.key holds no secret key"):
        own_key(public)
    with pytest.raises(CannotServe, match="No such file"):
        own_key(tmp_path / "nowhere")
    (tmp_path / "odd").write_text("x")
    with pytest.raises(CannotServe, match="no public key"):
        own_key(tmp_path / "odd")


def test_a_key_of_two_that_do_not_belong_together_is_refused(tmp_path):
    first, _ = make("first", tmp_path)
    second, _ = make("second", tmp_path)
    lines = first.read_text().splitlines()[:-1] + second.read_text().splitlines()[-1:]
    first.write_text("\n".join(lines))
    with pytest.raises(CannotServe, match="belong together"):
        own_key(first)


def test_a_look_that_fails_in_a_new_way_is_told_at_warning(folder, caplog):
    (folder / "x.key").write_text("x")
    with caplog.at_level(logging.WARNING):
        Authorized(folder)
    assert caplog.records[0].levelno == logging.WARNING
