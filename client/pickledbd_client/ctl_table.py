"""The one table of `pickledbctl`'s commands: their arguments, and what --help says of them.

Each names the function that carries it out.
"""

from __future__ import annotations

import argparse

from pickledbd_client import ctl_backup, ctl_commands, ctl_live, ctl_transfer
from pickledbd_client.ctl_parser import Commands, number, seconds, wait
from pickledbd_client.formats import FORMATS


def add_all(commands: Commands) -> None:
    """Add all commands but the shell."""
    for add in (_add_values, _add_keys, _add_many, _add_expiry, _add_whole, _add_others):
        add(commands)


def _add_values(commands: Commands) -> None:
    sub = commands.add(
        "set",
        ctl_commands.set_,
        "store a value under a key",
        examples="""set greeting "Hello, world!"
            set user:1 '{"name": "Ann", "tags": ["a", null]}'
            set session:42 1 --ttl 3600
            set page - < page.html""",
    )
    _key_and_value(sub)
    _ttl(sub)
    _fenced(sub)
    sub = commands.add(
        "get",
        ctl_commands.get,
        "print the value of a key, as JSON",
        examples="""get greeting
            get --raw page > page.html
            get --versioned stock:42""",
    )
    _key(sub)
    how = sub.add_mutually_exclusive_group()
    how.add_argument("-r", "--raw", action="store_true", help="print a string or bytes as they are")
    how.add_argument(
        "--versioned", action="store_true", help="print an object of its value and its version"
    )
    sub = commands.add(
        "exists",
        ctl_commands.exists,
        "tell by the exit status whether a key is there",
        examples="exists job:7 && echo it is there",
    )
    _key(sub)
    sub = commands.add(
        "setdefault",
        ctl_commands.setdefault,
        "print the value of a key, which is stored first if there is none",
        examples='setdefault settings "{}"',
    )
    _key_and_value(sub)
    _fenced(sub)
    sub = commands.add(
        "cas",
        ctl_commands.cas,
        "store a value if the key's is still of a version",
        more="Exits 1 if it is not.",
        examples="cas stock:42 6b0d71f1c5c0a2ab0ab0ce55cbfa4b16 5\ncas job:7 0 '\"mine\"'",
    )
    sub.add_argument("key", metavar="KEY")
    sub.add_argument(
        "version", metavar="VERSION", help="of `get --versioned`; 0: there is no such key"
    )
    sub.add_argument("value", metavar="VALUE", help="as of `set`")
    _ttl(sub)
    _fenced(sub)
    sub = commands.add(
        "incr",
        ctl_commands.incr,
        "add to a number and print the sum",
        examples="incr hits\nincr stock:42 -3\nincr temperature 0.5 --default 20",
    )
    _key(sub)
    sub.add_argument("by", metavar="BY", type=number, nargs="?", default=1, help="(default: 1)")
    sub.add_argument(
        "--default", metavar="N", type=number, default=0, help="if there is no such key (0)"
    )
    _fenced(sub)


def _add_keys(commands: Commands) -> None:
    sub = commands.add(
        "all",
        ctl_commands.all_,
        "print keys, one a line, in order of insertion",
        examples="all\nall --prefix user: | wc -l\nall --glob 'user:*:name'",
    )
    _some(sub)
    sub.add_argument("--json", action="store_true", help="print them as one JSON array")
    sub = commands.add(
        "items",
        ctl_commands.items,
        "print items, as an object of key and value a line",
        examples="items --prefix user: | jq .value.name",
    )
    _some(sub)
    commands.add("len", ctl_commands.len_, "print how many keys there are", examples="len")
    sub = commands.add("remove", ctl_commands.remove, "remove a key", examples="remove user:1")
    _key(sub)
    _fenced(sub)
    sub = commands.add(
        "pop", ctl_commands.pop, "remove a key and print its value, as JSON", examples="pop job:7"
    )
    _key(sub)
    _fenced(sub)
    sub = commands.add(
        "popitem",
        ctl_commands.popitem,
        "remove the item that was inserted last and print it, as `items` does",
        more="Exits 1 if there is none.",
        examples="popitem",
    )
    _fenced(sub)
    sub = commands.add(
        "purge",
        ctl_commands.purge,
        "remove everything",
        more="At a terminal it asks first.",
        examples="purge --yes",
    )
    sub.add_argument("-y", "--yes", action="store_true", help="do not ask")
    _fenced(sub)


def _add_many(commands: Commands) -> None:
    sub = commands.add(
        "get-many",
        ctl_commands.get_many,
        "print the items of several keys, all of one moment, as `items` does",
        more="Exits 1 if one is not there.",
        examples="get-many user:1 user:2",
    )
    sub.add_argument("keys", metavar="KEY", nargs="+")
    sub = commands.add(
        "set-many",
        ctl_commands.set_many,
        "store several values, all or none",
        more="What is in a file is for import.",
        examples='set-many stock:42 5 sold:42 1\nset-many a 1 b "[2, 3]" --ttl 60',
    )
    sub.add_argument("pairs", metavar="KEY VALUE", nargs="+", help="any number of them")
    sub.usage = "%(prog)s [-h] [--ttl SECONDS] [--token TOKEN] KEY VALUE [KEY VALUE ...]"
    _ttl(sub)
    _fenced(sub)
    sub = commands.add(
        "remove-many",
        ctl_commands.remove_many,
        "remove several keys at once and print how many of them were there",
        examples="remove-many user:1 user:2",
    )
    sub.add_argument("keys", metavar="KEY", nargs="+")
    _fenced(sub)


def _add_expiry(commands: Commands) -> None:
    sub = commands.add(
        "ttl",
        ctl_commands.ttl,
        "print the seconds until a key is gone; - if it lives on",
        examples="ttl session:42",
    )
    _key(sub)
    sub = commands.add(
        "expire",
        ctl_commands.expire,
        "have a key be gone after some time",
        examples="expire session:42 3600",
    )
    _key(sub)
    sub.add_argument("seconds", metavar="SECONDS", type=seconds)
    _fenced(sub)
    sub = commands.add(
        "persist", ctl_commands.persist, "have a key not expire", examples="persist session:42"
    )
    _key(sub)
    _fenced(sub)


def _add_whole(commands: Commands) -> None:
    sub = commands.add(
        "export",
        ctl_transfer.export,
        "write items to a file or to standard output, as they are at one moment",
        more="""json is one object, an entry a line, which pickleDB and pickledbd open as a data
            file. jsonl (JSON lines) is an object of key, value and, if it expires, ttl (the seconds
            left) a line. Bytes are $binary. A file is in its place only when it is whole.""",
        examples="""export dump.json
            export | gzip > dump.jsonl.gz
            export users.jsonl --prefix user:
            export --format json | ssh elsewhere 'cat > my.db'""",
    )
    sub.add_argument("file", metavar="FILE", nargs="?", help="(default, and -: standard output)")
    _format(sub)
    _some(sub)
    _progress(sub)
    sub = commands.add(
        "import",
        ctl_transfer.import_,
        "set the items of a file or of standard input, all of them or none",
        more="""What is there besides stays, unless --replace is given. Keys expire as the file, or
            the annex beside a backup, says. Whatever goes wrong, a bad
            line or a process that is killed, nothing is changed. What is larger than the daemon's
            --max-request has to be --resumable: it goes in chunks, and if it does not come to its
            end, the same command goes on where it was. How far it is, stands meanwhile in the
            database under the key "pickledbctl import: FILE".""",
        examples="""import my_old_pickledb.db
            import --replace /backups/my-2026-11-29.db
            zcat dump.jsonl.gz | pickledbctl -f my.db import
            import huge.jsonl --resumable""",
    )
    sub.add_argument("file", metavar="FILE", nargs="?", help="(default, and -: standard input)")
    _format(sub)
    how = sub.add_mutually_exclusive_group()
    how.add_argument("--replace", action="store_true", help="have nothing else in the database")
    how.add_argument(
        "--resumable", action="store_true", help="in chunks; the same command again goes on"
    )
    _progress(sub)
    sub = commands.add(
        "backup",
        ctl_backup.backup,
        "copy the running database to a file, as it is at one moment",
        more="""The copy is a data file that pickledbd and pickleDB open; if keys expire, when they
            do stands in PATH.annex-..., which is to be copied with it. Nothing is at PATH until all
            of it is on disk; a daemon's database is never written over. To restore a copy, import
            it with --replace.""",
        examples="backup /backups/my-$(date +%F).db\nbackup --force /backups/latest.db",
    )
    sub.add_argument("path", metavar="PATH")
    sub.add_argument("--force", action="store_true", help="replace a file that is there")
    _progress(sub)
    commands.add("save", ctl_commands.save, "have everything on disk", examples="save")


def _add_others(commands: Commands) -> None:
    sub = commands.add(
        "lock",
        ctl_commands.lock,
        "run a command while holding a lock, whose token is in its environment (PICKLEDBD_TOKEN)",
        more="Exits 1 if the lock was not free in time, else as the command does.",
        examples="""lock nightly --timeout 0 -- ./report.sh
            lock report -- sh -c './report | pickledbctl set report - --token $PICKLEDBD_TOKEN'""",
    )
    sub.runs_another = True
    sub.usage = "%(prog)s [-h] [--ttl SECONDS] [--timeout SECONDS] NAME -- COMMAND ..."
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--ttl", metavar="SECONDS", type=seconds, default=30.0, help="(default: 30)")
    sub.add_argument(
        "--timeout",
        dest="wait",
        metavar="SECONDS",
        type=wait,
        help="wait no longer than that; 0: not at all",
    )
    sub = commands.add(
        "watch",
        ctl_commands.watch,
        "print each change, as an object a line; to Ctrl+C",
        more="""A change has key, value (or removed) and seq. Where changes were missed, an object
            with all items as resync tells so.""",
        examples="watch user:\nwatch --since 1764432000123456",
    )
    sub.add_argument("prefix", metavar="PREFIX", nargs="?", default="")
    sub.add_argument("--since", metavar="SEQ", type=int, help="begin after this `seq`")
    sub = commands.add(
        "info",
        ctl_live.info,
        "tell about the daemon",
        more="--watch tells again and again, and how fast each count grows; Ctrl+C ends it.",
        examples="info\ninfo --json | jq .keys\ninfo --watch 5",
    )
    sub.add_argument("--json", action="store_true", help="print it as JSON")
    sub.add_argument(
        "-w",
        "--watch",
        metavar="SECONDS",
        type=seconds,
        nargs="?",
        const=1.0,
        help="every so many seconds (1)",
    )
    commands.add(
        "ping", ctl_commands.ping, "tell whether the daemon answers, and how fast", examples="ping"
    )


def _key(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("key", metavar="KEY")


def _key_and_value(sub: argparse.ArgumentParser) -> None:
    _key(sub)
    sub.add_argument("value", metavar="VALUE", help='JSON, else the string itself; "-": from stdin')


def _ttl(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--ttl", metavar="SECONDS", type=seconds, help="gone after these")


def _fenced(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--token",
        metavar="TOKEN",
        type=int,
        help="only if the lock of this token is held ($PICKLEDBD_TOKEN under `lock`)",
    )


def _some(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "-p", "--prefix", metavar="PREFIX", default="", help="only keys that begin with this"
    )
    sub.add_argument(
        "-g",
        "--glob",
        metavar="GLOB",
        help="only keys that match this: *, ?, [a-z], [!a-z]; put it in quotes",
    )


def _format(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--format",
        choices=FORMATS,
        help="(default: jsonl for a pipe and for FILE.jsonl and .ndjson, else json)",
    )


def _progress(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--progress", action="store_true", help="tell how far it is, though stderr is no terminal"
    )
