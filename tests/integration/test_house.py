"""The house as DESIGN draws it: what may import what, and which room touches what."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {
    "pickledbd": ROOT / "server" / "pickledbd",
    "pickledbd_client": ROOT / "client" / "pickledbd_client",
    "pickledbd_protocol": ROOT / "protocol" / "pickledbd_protocol",
}
MODULES = [(room, path) for room, folder in ROOMS.items() for path in sorted(folder.glob("*.py"))]


def imports(path):
    """Full names of all that a file imports, wherever in it the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(names, *packages):
    return {name for name in names if any(f"{name}.".startswith(f"{p}.") for p in packages)}


def test_server_and_client_know_the_protocol_and_not_each_other():
    assert len(MODULES) > 20
    allowed = {
        "pickledbd": {"pickledbd_protocol"},
        "pickledbd_client": {"pickledbd_protocol"},
        "pickledbd_protocol": set(),
    }
    for room, path in MODULES:
        others = ROOMS.keys() - {room} - allowed[room]
        assert not within(imports(path), *others), path


def test_the_rooms_import_one_way():
    """Nothing imports what imports it, also by way of others."""
    for room, folder in ROOMS.items():
        graph = {
            path.stem: {
                name.split(".")[1]
                for name in within(imports(path), room)
                if (folder / f"{name.split('.')[1]}.py").exists()
            }
            for path in folder.glob("*.py")
            if path.stem not in ("__init__", "__main__")
        }
        done = set()
        while ready := {name for name in graph.keys() - done if graph[name] <= done}:
            done |= ready
        assert done == graph.keys(), f"{room}: a circle among {graph.keys() - done}"


def test_the_protocol_does_no_input_or_output():
    io = ("zmq", "socket", "os", "io", "pathlib", "subprocess", "threading", "asyncio", "time")
    for room, path in MODULES:
        if room == "pickledbd_protocol":
            assert not within(imports(path), *io), path


def test_in_the_protocol_codec_knows_commands_which_know_errors():
    order = ["version", "lock_file", "data_file", "records", "annex", "counters"]
    order += ["errors", "commands", "values", "codec"]
    folder = ROOMS["pickledbd_protocol"]
    assert {path.stem for path in folder.glob("*.py")} == {*order, "__init__"}
    for index, name in enumerate(order):
        later = [f"pickledbd_protocol.{other}" for other in order[index + 1 :]]
        assert not within(imports(folder / f"{name}.py"), *later), name


@pytest.mark.parametrize(
    ("room", "module", "only"),
    [
        (
            "pickledbd",
            "zmq",
            {"loop", "intake", "listeners", "connections", "outbox", "door", "keys", "zap"},
        ),
        ("pickledbd_client", "zmq", {"channel", "curve", "handshake", "keygen"}),
        ("pickledbd", "fcntl", {"ownership", "disk"}),
        ("pickledbd", "tomllib", {"config"}),
        ("pickledbd", "mmap", {"counters"}),
        ("pickledbd", "ctypes", {"counters", "valve", "guard"}),
        ("pickledbd_client", "mmap", {"cache"}),
        ("pickledbd", "concurrent", {"tasks", "saver"}),
    ],
)
def test_only_one_room_touches(room, module, only):
    users = {path.stem for name, path in MODULES if name == room and within(imports(path), module)}
    assert users == only


def test_only_the_rooms_of_the_disk_write_sync_and_rename():
    """What others open they read; what they unlink is told to be superfluous. A log is no file."""
    steps = {"write_all", "sync", "sync_path", "create"}
    for path in sorted(ROOMS["pickledbd"].glob("*.py")):
        taken = {name.rpartition(".")[2] for name in within(imports(path), "pickledbd.disk")}
        may = {"snapshot": steps, "journal": steps, "annex": steps, "saver": {"sync_path"}}
        assert taken & steps <= may.get(path.stem, set()), path
        calls = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
        }
        found = calls & {"fsync", "fdatasync", "write", "ftruncate", "rename", "replace", "link"}
        allowed = {
            "disk": {"fsync", "fdatasync", "write"},
            "logs": {"write"},
            "journal": {"ftruncate"},
            "snapshot": {"link"},
            "ownership": {"write", "ftruncate"},
        }
        assert found <= allowed.get(path.stem, set()), path


def test_what_is_kept_and_what_was_answered_know_neither_sockets_nor_files():
    inner = ("table", "store", "handlers", "records", "retries", "batches")
    inner += ("expiry", "wheel", "globs", "locks", "watches", "parking")
    outside = ("zmq", "socket", "os", "io", "pathlib", "fcntl", "subprocess")
    rooms = [f"pickledbd.{name}" for name in ("disk", "snapshot", "journal", "recovery", "saver")]
    for name in inner:
        found = imports(ROOMS["pickledbd"] / f"{name}.py")
        assert not within(found, *outside, *rooms), name


def test_the_engine_and_the_saver_leave_the_files_to_their_rooms():
    for name in ("engine", "saver", "tasks", "status"):
        found = imports(ROOMS["pickledbd"] / f"{name}.py")
        assert not within(found, "zmq", "socket", "fcntl", "io"), name


def test_nothing_else_stands_at_the_top():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in listed.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        *("server", "client", "protocol", "tests", "benchmarks", "systemd"),
    }


def test_every_package_is_typed_and_says_what_it_is():
    for folder in ROOMS.values():
        assert (folder / "py.typed").exists()
    for _, path in MODULES:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
