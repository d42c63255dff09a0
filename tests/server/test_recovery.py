"""Start-up: what a daemon makes of the files that it finds, and what --check says of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re

import pytest

from pickledbd import records
from pickledbd.journal import find_journals, journal_path
from support import Daemon, run, wait_until


def killed(location, *writes, save_first=None):
    """Have a daemon write, and kill it: the journal that it left."""
    daemon = Daemon(location)
    with contextlib.closing(daemon.client()) as db:
        if save_first:
            db.update(save_first)
            db.save()
        for key, value in writes:
            db.set(key, value)
    daemon.kill()
    return max(find_journals(location).items())[1]


def held(location, *options):
    """What a daemon serves there, and its log; it is killed as soon as it serves."""
    daemon = Daemon(location, *options)
    with contextlib.closing(daemon.client()) as db:
        content = dict(db.items())
    daemon.process.kill()
    return content, daemon.end()[1]


def files(location):
    """All that is in the directory, byte by byte."""
    names = [name for name in os.listdir(location.parent) if not name.endswith(".lock")]
    return {name: (location.parent / name).read_bytes() for name in names}


def checked(location):
    """What --check says, and its exit status. It changes nothing."""
    before = files(location)
    status, said, err = run("--check", location)
    assert err == ""
    assert files(location) == before
    return status, said


def refused(location):
    """The line with which a start is refused, as --check says it; nothing is touched."""
    before = files(location)
    status, said, err = run(location)
    assert (status, said) == (1, "")
    (line,) = err.splitlines()
    assert files(location) == before
    status, said = checked(location)
    assert status == 1
    assert line.removeprefix("pickledbd: ") in said
    return line


def starts_normally(location, content):
    assert held(location)[0] == content
    status, said = checked(location)
    assert status == 0, said
    daemon = Daemon(location)
    daemon.stop()
    assert (json.loads(location.read_bytes()) if location.exists() else {}) == content


WRITES = [(f"key{n}", n) for n in range(5)]


def test_what_was_acknowledged_is_there_after_a_kill_and_check_finds_it(location):
    killed(location, *WRITES)
    status, said = checked(location)
    assert status == 0
    assert "5 writes, whole" in said
    assert "5 keys, of which 0 expire, 5 changes that the file does not hold" in said
    content, log = held(location)
    assert content == dict(WRITES)
    assert "5 changes from the journal" in log
    starts_normally(location, dict(WRITES))


@pytest.mark.parametrize("cut", [1, 30])
def test_a_torn_tail_is_cut_with_one_warning_that_says_how_much(location, cut):
    journal = killed(location, *WRITES)
    whole = journal.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    journal.write_bytes(whole[:-cut])
    told = f"read up to byte {last:,}, {len(whole) - cut - last:,} bytes were cut"
    status, said = checked(location)
    assert status == 1
    assert told in said
    content, log = held(location)
    assert content == dict(WRITES[:-1])
    assert log.count("were cut") == 1
    assert told in log
    assert journal.read_bytes() == whole[:last]
    starts_normally(location, dict(WRITES[:-1]))


def test_a_sector_that_the_disk_did_not_write_is_a_torn_tail_too(location):
    journal = killed(location, *((f"key{n}", "x" * 300) for n in range(9)))
    content = bytearray(journal.read_bytes())
    content[1024:1536] = bytes(512)
    journal.write_bytes(content)
    status, said = checked(location)
    assert status == 1
    assert "were cut" in said
    found, _ = held(location)
    assert 0 < len(found) < 9
    assert list(found) == [f"key{n}" for n in range(len(found))]
    starts_normally(location, found)


def test_writes_after_a_cut_follow_what_was_read(location):
    journal = killed(location, *WRITES)
    journal.write_bytes(journal.read_bytes()[:-7])
    killed(location, ("new", 1))
    starts_normally(location, {**dict(WRITES[:-1]), "new": 1})


def write_journal(location, number, *texts, base=None, previous=None):
    """Have a journal with records of these texts; its length."""
    head = records.head(number, base=base, previous=previous, answers=[], forgotten=0)
    return journal_path(location, number).write_bytes(records.encode([head, *texts], number, 0))


def damaged(location, key=b"key2"):
    """Flip a bit in the journal's record of `key`; the place of that."""
    journal = killed(location, *WRITES)
    content = bytearray(journal.read_bytes())
    place = content.index(b'"%b"' % key)
    content[place + 1] ^= 1
    journal.write_bytes(content)
    return content.rindex(b"\n", 0, place) + 1


def test_damage_before_the_end_is_refused_with_its_place(location):
    place = damaged(location)
    line = refused(location)
    assert f"is damaged at byte {place:,} of" in line
    assert "--replay-journal" in line
    assert "--discard-journal" in line


def test_a_last_record_with_a_flipped_bit_is_no_torn_tail(location):
    place = damaged(location, b"key4")
    assert f"is damaged at byte {place:,} of" in refused(location)


def test_a_journal_under_the_name_of_another_is_refused(location):
    three_journals(location)
    two, three = journal_path(location, 2), journal_path(location, 3)
    second = two.read_bytes()
    two.write_bytes(three.read_bytes())
    three.write_bytes(second)
    assert f"{two} is damaged at byte 0 of" in refused(location)


def test_a_journal_without_writes_that_needs_one_that_is_gone_is_no_clean_stop(location):
    write_journal(location, 2, previous=(1, 900))
    location.write_bytes(b'{"other":0}\n')
    assert "is not the file that its journal follows" in refused(location)


def test_replay_applies_what_stands_before_the_damage(location):
    place = damaged(location)
    content, log = held(location, "--replay-journal")
    assert content == dict(WRITES[:2])
    assert f"is damaged at byte {place:,} of" in log
    starts_normally(location, dict(WRITES[:2]))


def test_discard_does_without_the_journal_and_keeps_it_under_another_name(location):
    damaged(location)
    journals = {name: text for name, text in files(location).items() if ".journal." in name}
    content, _ = held(location, "--discard-journal")
    assert content == {}
    kept = [name for name in files(location) if ".discarded-" in name]
    assert {re.sub(r"\.discarded-\d+$", "", n): files(location)[n] for n in kept} == journals
    starts_normally(location, {})


def replaced(location):
    """Another data file under a journal that has something to tell."""
    killed(location, ("after", 2), save_first={"before": 1})
    location.write_bytes(b'{"other": 0}')


def test_a_data_file_replaced_under_a_journal_is_refused_and_both_ways_out_are_told(location):
    replaced(location)
    line = refused(location)
    assert "is not the file that its journal follows" in line
    assert "--replay-journal" in line
    assert "--discard-journal" in line


def test_replay_applies_the_journal_to_the_other_file_and_saves_at_once(location):
    replaced(location)
    content, _ = held(location, "--replay-journal")
    assert content["other"] == 0
    assert content["after"] == 2
    assert json.loads(location.read_bytes()) == content
    starts_normally(location, content)


def test_discard_takes_the_other_file_as_it_is(location):
    replaced(location)
    assert held(location, "--discard-journal")[0] == {"other": 0}
    starts_normally(location, {"other": 0})


@pytest.mark.parametrize("choice", ["--replay-journal", "--discard-journal"])
def test_a_choice_where_nothing_is_to_be_chosen_loses_nothing_that_is_saved(location, choice):
    killed(location, save_first=dict(WRITES))
    assert held(location, choice)[0] == dict(WRITES)
    starts_normally(location, dict(WRITES))


def test_an_edit_after_a_clean_stop_is_accepted(location):
    daemon = Daemon(location)
    with contextlib.closing(daemon.client()) as db:
        db.update(WRITES)
    daemon.stop()
    edited = json.loads(location.read_bytes()) | {"edited": True}
    location.write_text(json.dumps(edited))  # as pickleDB's own save does
    status, said = checked(location)
    assert status == 0, said  # a start serves all of it
    assert "was changed since the last stop" in said
    assert held(location)[0] == edited
    starts_normally(location, edited)


def test_a_format_of_another_release_is_refused(location):
    journal = killed(location, *WRITES)
    lines = journal.read_bytes().splitlines(keepends=True)
    head = {**records.form(lines[0]), "journal": 3}
    lines[0] = records.encode([json.dumps(head).encode()], int(journal.suffix[1:]), 0)
    journal.write_bytes(b"".join(lines))
    assert "is of format 3, this release reads up to 2" in refused(location)


def three_journals(location):
    """Journals 1, 2 and 3, which follow one another, each with a write."""
    previous = None
    for number in (1, 2, 3):
        base = None if previous else hashlib.sha256().hexdigest()
        write = records.effects({f"key{number}": b"1"})
        previous = number, write_journal(location, number, write, base=base, previous=previous)


def test_journals_are_applied_one_after_the_other(location):
    three_journals(location)
    starts_normally(location, {"key1": 1, "key2": 1, "key3": 1})


@pytest.mark.parametrize("synced", [False, True])
def test_a_journal_that_is_missing_is_refused_and_named(location, synced):
    three_journals(location)
    journal_path(location, 2).unlink()
    if synced:  # which says that what was before it was on disk
        with journal_path(location, 3).open("ab") as file:
            file.write(records.encode([records.synced(10)], 3, file.tell()))
    missing = "my.db.journal.2 is missing, which my.db.journal.3 follows"
    assert missing in refused(location)
    _, log = held(location, "--replay-journal")
    assert f"with all of my.db.journal.3: {journal_path(location, 2).parent}/{missing}" in log
    starts_normally(location, {"key1": 1})


def test_damage_behind_the_length_that_the_next_journal_tells_does_not_count(location):
    three_journals(location)
    first = journal_path(location, 1)
    refused_write = records.encode([records.effects({"x": b"1"})], 1, first.stat().st_size)
    with first.open("ab") as file:
        file.write(refused_write.replace(b"1", b"2"))
    starts_normally(location, {"key1": 1, "key2": 1, "key3": 1})


def test_a_journal_with_writes_that_follows_no_other_is_refused(location):
    three_journals(location)
    write_journal(location, 4, records.effects({"other": b"1"}), base="ab" * 32)
    assert "my.db.journal.4 does not follow my.db.journal.3" in refused(location)


def test_a_replay_that_was_killed_before_its_save_was_in_place_is_not_noticed(location):
    three_journals(location)
    write_journal(location, 4, base="ab" * 32)
    status, said = checked(location)
    assert status == 0
    assert "cut" not in said
    starts_normally(location, {"key1": 1, "key2": 1, "key3": 1})


def test_what_killed_saves_left_is_swept(location):
    killed(location, *WRITES)
    number = max(find_journals(location))
    temporary = location.with_name("my.db.tmp-01234567")
    temporary.write_bytes(b'{"half')
    following = journal_path(location, number + 1)
    following.touch()
    assert held(location)[0] == dict(WRITES)
    assert not temporary.exists()
    assert not following.exists()
    starts_normally(location, dict(WRITES))


def test_check_leaves_a_database_in_use_alone(daemon, db):
    db.set("a", 1)
    status, said, _ = run("--check", daemon.location)
    assert status == 1
    assert f"in use by pid {daemon.pid}" in said


def test_check_of_a_file_that_is_not_there_says_so_and_does_not_make_it(location):
    status, said = checked(location)
    assert (status, f"there is no {location}" in said) == (0, True)


def test_check_with_a_lock_file_that_cannot_be_opened_says_so_in_one_line(location):
    lock = location.with_name(location.name + ".lock")
    lock.symlink_to("nowhere")
    status, said, err = run("--check", location)
    assert (status, err) == (1, "")
    assert said.startswith(f"cannot read {lock}: ")


def test_check_of_a_data_file_that_does_not_parse_says_where(location):
    location.write_bytes(b'{"a":')
    assert "is not JSON" in refused(location)


def test_backups_keep_the_files_that_the_last_saves_replaced(location):
    daemon = Daemon(location, "--backups", 2)
    with contextlib.closing(daemon.client()) as db:
        for n in range(5):
            db.set("n", n)
            db.save()
    daemon.check_and_stop()
    backups = sorted(location.parent.glob("my.db.backup-*"))
    assert [json.loads(path.read_bytes())["n"] for path in backups] == [2, 3]


def test_a_journal_that_outgrows_the_data_is_replaced_by_a_snapshot(daemon, db):
    value = "x" * 100_000
    for _ in range(60):
        db.set("key", value)
    wait_until(lambda: db.info()["last_save_time"] is not None, "the checkpoint")
    wait_until(lambda: not db.info()["saving"], "the end of it")
    # The first has gone; a second may, if it was written to meanwhile, hold some
    assert min(find_journals(daemon.location)) > 1 or db.info()["journal_bytes"] < 6_000_000
    assert json.loads(daemon.location.read_bytes()) == {"key": value}


def test_a_journal_that_was_given_up_and_could_not_be_removed_is_passed_over(location):
    journal = killed(location, *WRITES)
    number, length = int(journal.suffix[1:]), journal.stat().st_size
    write_journal(location, number + 1, previous=(number, length))
    last = records.effects({"last": b"1"})
    write_journal(location, number + 2, last, previous=(number, length))
    starts_normally(location, dict(WRITES) | {"last": 1})


def test_an_answer_nested_too_deeply_to_be_told_again_stops_no_start(location):
    """Only a file of pickleDB's can hold such a value, and only a pop's answer tells it."""
    location.write_bytes(b'{"deep":%b%b,"a":1}' % (b"[" * 254, b"]" * 254))
    daemon = Daemon(location)
    with contextlib.closing(daemon.client()) as db:
        assert db.pop("deep")
    daemon.kill()
    content, _ = held(location)
    assert content == {"a": 1}
