"""Each example of pickleDB 1.0's README, section by section, with only the import changed.

`db` is opened as there: by a name relative to where the program runs, and nobody had started a
daemon. Each test ends by looking whether what the example stored is there after a save and a
restart. The two examples that are whole programs run as such.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import boto3
import orjson
import pytest
from cryptography.fernet import Fernet

from pickledbd_client import PickleDB
from support import PATIENCE, owner_pid, wait_until


@pytest.fixture
def db(location, monkeypatch):
    monkeypatch.chdir(location.parent)
    with contextlib.closing(PickleDB(location.name)) as opened:
        yield opened


def after_restart(db):
    """All that another daemon serves at the same path, after `db` was saved and its owner ended."""
    assert db.save() is True
    owner = db.info()["pid"]
    saved = Path(db.location).read_bytes()
    os.kill(owner, signal.SIGTERM)
    wait_until(lambda: owner_pid(db.location) != owner, f"the owner {owner} to end")
    assert Path(db.location).read_bytes() == saved  # save() left nothing for the end to save
    with contextlib.closing(PickleDB(db.location)) as again:
        assert again.info()["pid"] != owner
        return dict(again.items())


def check_kept(db, expected):
    """`expected` is what is there after a save and a restart, in that order."""
    kept = after_restart(db)
    assert kept == expected
    assert list(kept) == list(expected)


# Your First pickleDB


def test_the_first_database(location, monkeypatch):
    monkeypatch.chdir(location.parent)
    db = PickleDB("my.db")
    with contextlib.closing(db):
        db.set("greeting", "Good morning")
        assert db.get("greeting") == "Good morning"
        db.save()
        assert json.loads(location.read_bytes()) == {"greeting": "Good morning"}
        check_kept(db, {"greeting": "Good morning"})


# Minimal, Powerful API


def test_set_adds_and_updates_and_has_a_shorthand(db):
    assert db.set("username", "ann") is True
    db["username"] = "bob"
    assert db.get("username") == "bob"
    db.set("username", "cleo")
    assert db.get("username") == "cleo"
    check_kept(db, {"username": "cleo"})


def test_get_returns_the_value_or_none_and_has_a_shorthand(db):
    db.set("username", "cleo")
    assert db.get("username") == "cleo"
    assert db["username"] == "cleo"
    assert db.get("nobody") is None
    check_kept(db, {"username": "cleo"})


def test_all_lists_the_keys_in_the_order_they_came(db):
    db.set("username", "cleo")
    db.set("item2", "first")
    db.set("item1", "second")
    db.set("username", "dora")  # keeps its place
    assert db.all() == ["username", "item2", "item1"]
    check_kept(db, {"username": "dora", "item2": "first", "item1": "second"})


def test_remove_deletes_a_key_and_its_value(db):
    db.set("username", "cleo")
    db.set("item1", "first")
    db.set("item2", "second")
    assert db.remove("item1") is True
    assert db.remove("item1") is False
    assert db.all() == ["username", "item2"]
    check_kept(db, {"username": "cleo", "item2": "second"})


def test_purge_clears_everything(db):
    db.set("username", "cleo")
    db.set("item1", "first")
    db.save()
    assert db.purge() is True
    assert db.all() == []
    check_kept(db, {})


def test_save_persists_what_is_there(db, location):
    db.set("username", "cleo")
    assert db.save() is True
    assert json.loads(location.read_bytes()) == {"username": "cleo"}
    check_kept(db, {"username": "cleo"})


# Store and Retrieve Complex Data


def test_a_dict_is_stored_read_changed_and_stored_again(db):
    db.set("user", {"name": "Ann", "age": 41, "city": "Bergen"})
    user = db.get("user")
    user["age"] += 1
    db.set("user", user)
    assert db.get("user") == {"name": "Ann", "age": 42, "city": "Bergen"}
    check_kept(db, {"user": {"name": "Ann", "age": 42, "city": "Bergen"}})


# Use Lists for Dynamic Data


def test_a_list_is_stored_read_appended_to_and_stored_again(db):
    db.set("tasks", ["plan", "build", "try"])
    tasks = db.get("tasks")
    tasks.append("rest")
    db.set("tasks", tasks)
    assert db.get("tasks") == ["plan", "build", "try", "rest"]
    check_kept(db, {"tasks": ["plan", "build", "try", "rest"]})


# Store Configurations


def test_a_configuration_is_stored_and_updated(db):
    db.set("config", {"theme": "light", "sound": True})
    config = db.get("config")
    config["sound"] = False
    db.set("config", config)
    assert db.get("config") == {"theme": "light", "sound": False}
    check_kept(db, {"config": {"theme": "light", "sound": False}})


# Session Management


def test_a_session_is_begun_and_ended(db):
    db.set("session_77", {"user_id": 5, "status": "active"})
    session = db.get("session_77")
    session["status"] = "inactive"
    db.set("session_77", session)
    assert db.get("session_77") == {"user_id": 5, "status": "inactive"}
    check_kept(db, {"session_77": {"user_id": 5, "status": "inactive"}})


# Advanced Key Search


def test_keys_are_searched_into_a_list_and_into_a_dict(db):
    def matching_list(db_instance, match):
        return [key for key in db_instance.all() if match in key]

    def matching_dict(db_instance, match):
        return dict(filter(lambda item: match in item[0], db_instance.db.items()))

    db.set("pear", 1)
    db.set("pea", {"pods": [7, 8]})
    db.set("plum", 3)
    assert matching_list(db, "ea") == ["pear", "pea"]
    assert matching_dict(db, "ea") == {"pear": 1, "pea": {"pods": [7, 8]}}
    check_kept(db, {"pear": 1, "pea": {"pods": [7, 8]}, "plum": 3})


# Namespace Support


def test_prefixes_make_namespaces(db):
    def namespace_keys(db_instance, namespace):
        return [key for key in db_instance.all() if key.startswith(f"{namespace}:")]

    db.set("user:1", {"name": "Ann", "age": 42})
    db.set("users", 2)
    db.set("user:2", {"name": "Bob", "age": 24})
    assert namespace_keys(db, "user") == ["user:1", "user:2"]
    check_kept(
        db, {"user:1": {"name": "Ann", "age": 42}, "users": 2, "user:2": {"name": "Bob", "age": 24}}
    )


# Expire Keys


def test_keys_expire_when_read_after_their_time_also_across_a_restart(db):
    def set_with_expiry(db_instance, key, value, ttl):
        db_instance.set(key, {"value": value, "expires_at": time.time() + ttl})

    def get_if_not_expired(db_instance, key):
        data = db_instance.get(key)
        if data and time.time() < data["expires_at"]:
            return data["value"]
        db_instance.remove(key)
        return None

    set_with_expiry(db, "long", "active", ttl=10 * PATIENCE)
    assert get_if_not_expired(db, "long") == "active"
    set_with_expiry(db, "short", "active", ttl=0.2)
    wait_until(lambda: get_if_not_expired(db, "short") is None, "the key to expire")
    assert db.all() == ["long"]

    set_with_expiry(db, "over meanwhile", "active", ttl=0.01)
    long, over = db.get("long"), db.get("over meanwhile")
    check_kept(db, {"long": long, "over meanwhile": over})
    with contextlib.closing(PickleDB(db.location)) as again:
        assert get_if_not_expired(again, "long") == "active"
        assert get_if_not_expired(again, "over meanwhile") is None
        assert again.all() == ["long"]


# Encrypted Storage


def test_encrypted_bytes_are_stored_and_decrypted_also_after_a_restart(db):
    key = Fernet.generate_key()
    cipher = Fernet(key)
    encrypted_value = cipher.encrypt(b"nobody's business")
    db.set("secure_key", encrypted_value)
    read = db.get("secure_key")
    assert read == encrypted_value
    assert cipher.decrypt(read).decode() == "nobody's business"

    kept = after_restart(db)
    assert kept == {"secure_key": encrypted_value}
    assert Fernet(key).decrypt(kept["secure_key"]) == b"nobody's business"


# Batch Operations


def test_a_batch_is_set(db):
    def batch_set(db_instance, items):
        for key, value in items.items():
            db_instance.set(key, value)

    batch_set(db, {"key1": "one", "key2": "two", "key3": "three"})
    assert db.all() == ["key1", "key2", "key3"]
    check_kept(db, {"key1": "one", "key2": "two", "key3": "three"})


def test_a_batch_is_deleted(db):
    def batch_delete(db_instance, keys):
        for key in keys:
            db_instance.remove(key)

    db.set("temp1", "one")
    db.set("temp2", "two")
    db.save()
    batch_delete(db, ["temp1", "temp2"])
    assert db.all() == []
    check_kept(db, {})


# Manipulate Database Stats


def test_stats_are_computed_from_the_values(db):
    def db_stats(db_instance):
        total_keys = len(db_instance.all())
        data_size = sum(len(str(value)) for value in db_instance.db.values())
        return {"total_keys": total_keys, "data_size": data_size}

    content = {"text": "four", "list": [1, 2.5, None], "dict": {"a": {"b": ["c"]}}, "none": None}
    for key, value in content.items():
        db.set(key, value)
    size = len("four") + len("[1, 2.5, None]") + len("{'a': {'b': ['c']}}") + len("None")
    assert db_stats(db) == {"total_keys": 4, "data_size": size}
    check_kept(db, content)


# Data Migration


def test_the_content_is_exported_and_imported_again(db):
    def export_db(db_instance, export_path):
        with open(export_path, "w") as f:
            f.write(orjson.dumps(db_instance.db).decode())

    def import_db(db_instance, import_path):
        with open(import_path) as f:
            db_instance.db = orjson.loads(f.read())
        db_instance.save()

    content = {"b": {"list": [1, 2.5, None]}, "a": "text", "empty": {}}
    for key, value in content.items():
        db.set(key, value)
    export_db(db, "exported.json")
    db.purge()
    db.set("only in between", 1)
    import_db(db, "exported.json")
    assert db.all() == ["b", "a", "empty"]
    assert json.loads(Path("exported.json").read_bytes()) == content
    check_kept(db, content)


# Backup to AWS


class Bucket(BaseHTTPRequestHandler):
    """As much of S3 as one upload needs; what it was sent is in `server.objects`."""

    protocol_version = "HTTP/1.1"  # whose clients may wait for a 100 Continue

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.objects[self.path] = body
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """The objects of a stand-in for S3 on this machine, where boto3 then goes by itself."""
    with HTTPServer(("127.0.0.1", 0), Bucket) as server:
        server.objects = {}
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        # Neither a developer's own settings nor a proxy have a part in this.
        for name in list(os.environ):
            if name.startswith("AWS_") or name.lower().endswith("_proxy"):
                monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        yield server.objects
        server.shutdown()
        thread.join(PATIENCE)


def test_the_file_is_backed_up_to_s3(db, bucket):
    def backup_to_s3(db_instance, bucket_name, s3_key):
        s3 = boto3.client("s3")
        with open(db_instance.location, "rb") as f:
            s3.upload_fileobj(f, bucket_name, s3_key)

    content = {f"key {n}": {"n": n, "text": "ü" * n} for n in range(100)}
    for key, value in content.items():
        db.set(key, value)
    db.save()
    backup_to_s3(db, "my-bucket", "backup/my.db")

    uploaded = bucket["/my-bucket/backup/my.db"]
    assert uploaded == Path(db.location).read_bytes()
    assert json.loads(uploaded) == content
    check_kept(db, content)


# Use pickleDB over HTTP (REST)

# The port is the system's to choose, and no file is watched, since some other test or person may
# be writing in one of those that it imports. debug=True is the README's: there are two processes
# then that have the database open, and the second serves.
API = """
from flask import Flask, jsonify, request
from pickledbd_client import PickleDB

app = Flask(__name__)
db = PickleDB("my.db")

@app.route("/set", methods=["POST"])
def set_value():
    data = request.json
    db.set(data["key"], data["value"])
    db.save()
    return jsonify({"message": "saved"})

@app.route("/get/<key>", methods=["GET"])
def get_value(key):
    value = db.get(key)
    return jsonify({"value": value})

if __name__ == "__main__":
    app.run(debug=True, port=0, exclude_patterns=["*"])
"""


def end_group(process):
    """End all processes of the group that `process` leads; the daemon is in one of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    process.wait(PATIENCE)


@pytest.fixture
def api(location):
    """A function that asks the running program: (method, path, JSON) -> JSON."""
    program = location.with_name("api.py")
    program.write_text(API)
    log = location.with_name("api.log")
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, program.name],
            cwd=location.parent,
            stdout=file,
            stderr=file,
            start_new_session=True,  # so that both of its processes can be ended at once
        )

    def serving():
        assert process.poll() is None, log.read_text()
        return re.search(r"Running on http://127\.0\.0\.1:(\d+)", log.read_text())

    def ask(method, path, content=None):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        with contextlib.closing(connection):
            body = None if content is None else json.dumps(content)
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
            assert response.status == 200, answer
            return json.loads(answer)

    try:
        port = int(wait_until(serving, "the server to start")[1])
        yield ask
    finally:
        end_group(process)


def test_a_flask_app_serves_the_database_to_several_clients_at_once(location, api):
    content = {f"key{n}": {"n": n, "tags": ["a", None]} for n in range(40)}

    def client(item):
        key, value = item
        assert api("POST", "/set", {"key": key, "value": value}) == {"message": "saved"}
        return api("GET", f"/get/{key}")["value"]

    with ThreadPoolExecutor(8) as clients:
        assert list(clients.map(client, content.items())) == list(content.values())
    assert api("GET", "/get/nobody") == {"value": None}

    assert json.loads(location.read_bytes()) == content  # each request had saved
    with contextlib.closing(PickleDB(location)) as db:
        assert after_restart(db) == content
    # and the app goes on with the daemon that now is there
    assert api("GET", "/get/key7") == {"value": content["key7"]}


# Key Pattern Matching


def test_keys_are_found_by_a_regular_expression(db):
    def keys_by_pattern(db_instance, pattern):
        regex = re.compile(pattern)
        return [key for key in db_instance.all() if regex.search(key)]

    content = {"user:1": {"name": "Ann"}, "user:2": {"name": "Bob"}, "admin:1": {"name": "Cleo"}}
    for key, value in content.items():
        db.set(key, value)
    assert keys_by_pattern(db, r"user:\d") == ["user:1", "user:2"]
    check_kept(db, content)


# Adding Custom Signal Handling

SIGNALS = """
import signal
import sys
from pickledbd_client import PickleDB

db = PickleDB("my.db")
signal.signal(signal.SIGINT, lambda signum, frame: (db.save(), sys.exit(0)))
signal.signal(signal.SIGTERM, lambda signum, frame: (db.save(), sys.exit(0)))
db.set("key1", "one")
db.set("key2", "two")
print("running")
try:
    while True:
        pass
except KeyboardInterrupt:
    pass
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_program_saves_and_exits_in_its_signal_handler(location, number):
    program = location.with_name("program.py")
    program.write_text(SIGNALS)
    process = subprocess.Popen(
        [sys.executable, "-u", program.name],
        cwd=location.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            assert select.select([process.stdout], [], [], PATIENCE)[0], "it did not start"
            assert process.stdout.readline() == "running\n"
            # As a terminal's Ctrl+C: to the program and all that it started
            os.killpg(process.pid, number)
            _, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, "")
    assert json.loads(location.read_bytes()) == {"key1": "one", "key2": "two"}
    with contextlib.closing(PickleDB(location)) as db:
        check_kept(db, {"key1": "one", "key2": "two"})
