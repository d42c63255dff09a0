"""Globs: what they match, and that no glob takes long, whoever wrote it."""

from __future__ import annotations

import ast
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pickledbd import globs, handlers
from pickledbd.globs import matcher
from pickledbd.store import Store
from pickledbd_protocol.commands import GLOB_MAX

CHARS = "ab-!]^\\.*?[\n\u00e9\U0001d4b3"
keys = st.text(CHARS, max_size=8)

plain = st.text("ab.\\^\n\u00e9\U0001d4b3", max_size=3)
bounds = st.tuples(*[st.sampled_from("abc\u00e9\U0001d4b3")] * 2).map(sorted)
of_a_set = st.sampled_from("ab.*?[^\\\u00e9") | bounds.map("-".join)
sets = st.builds(
    "[{}{}{}]".format,
    st.sampled_from(["", "!"]),
    st.sampled_from(["", "]", "-"]),
    st.lists(of_a_set, min_size=1, max_size=3).map("".join),
)
well_formed = st.lists(plain | st.sampled_from("*?") | sets, max_size=6).map("".join)
anything = st.text("ab-!]*?[^", max_size=8)


@given(well_formed | anything, st.lists(keys, max_size=5))
@example("[", ["[", ""])
@example("a[b", ["a[b", "ab"])
@example("[]", ["[]", "]"])
@example("[]]", ["]"])
@example("[!]]", ["]", "a", "!"])
@example("[!", ["[!", "a"])
@example("[a-]", ["a", "-", "b"])
@example("", ["", "a"])
@example("**", ["", "a"])
@example("a*b*a", ["aba", "ab", "abba", "aa"])
@example("ab*ba", ["aba", "abba"])
def test_a_key_matches_just_if_it_does_for_fnmatch(glob, some):
    matches = matcher(glob)
    # The glob itself, its characters taken as they are, is close to being a match
    for key in [*some, glob, *(glob.replace(special, "a") for special in "*?["), ""]:
        assert matches(key) == fnmatchcase(key, glob), (glob, key)


@given(keys)
def test_in_brackets_a_character_stands_for_itself(key):
    glob = "".join(f"[{char}]" if char in "*?[" else char for char in key)
    assert matcher(glob)(key)
    assert not matcher(glob)(key + "a")
    assert [other for other in CHARS if matcher(glob)(other + key)] == []


def steps_of(work, most):
    """How many lines of `globs` are run by `work()`: a measure that no busy machine changes."""
    lines = 0
    before = sys.gettrace()

    def trace(frame, event, _arg):
        nonlocal lines
        if frame.f_code.co_filename != globs.__file__:
            return None
        lines += event == "line"
        assert lines <= most, f"over {most:,} steps"
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return lines


ADVERSARIAL = {
    "many stars": ("*a" * 30 + "*b", "a" * 60),
    "many stars, in the midst": ("a" + "*a*" * 20 + "b", "a" * 60),
    "stars and any": ("*?" * 30 + "*b", "a" * 60),
    "stars beside stars": ("*" * 60 + "b", "a" * 60),
    "a long rest behind a star": ("*" + "a" * 29 + "b", "a" * 60),
    "sets behind stars": ("*[ab][!c]" * 7 + "b", "a" * 60),
    "no key at all": ("*a" * 30, ""),
}


@pytest.mark.parametrize(("glob", "key"), ADVERSARIAL.values(), ids=ADVERSARIAL)
def test_no_glob_takes_more_steps_than_its_length_times_the_keys(glob, key):
    most = 12 * (len(glob) + 1) * (len(key) + 1)
    assert steps_of(lambda: matcher(glob)(key), most) > 0
    assert steps_of(lambda: matcher(glob * 2)(key * 2), 4 * most) > 0


def test_no_regular_expression_is_made_of_a_glob():
    tree = ast.parse(Path(globs.__file__).read_text(encoding="utf-8"))
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None), *(alias.name for alias in node.names)]
    }
    assert imported.isdisjoint({"re", "fnmatch", "glob", "_sre"})


SLICE_STEPS = 60_000
"""Of 0.05 to 0.1 us each: a slice is not to be much longer than 5 ms."""

LETTERS = "".join(map(chr, range(0x4E00, 0x4E00 + 4000)))


@pytest.mark.parametrize("op", ["all", "dump"])
@pytest.mark.parametrize(
    ("glob", "key", "count"),
    [
        ("*" + "a" * 99 + "b", "a" * 200, 400),
        ("*?" + "a" * 99 + "b", "a" * 200, 400),
        ("*" + "a" * (GLOB_MAX - 2) + "b", "a" * 20_000, 1),
        ("*[" + "b" * (GLOB_MAX - 3) + "]", "a" * 2000, 30),
        ("*" + "?" * (GLOB_MAX - 2) + "b", LETTERS, 1),
        ("*[" + "b" * (GLOB_MAX - 3) + "]", LETTERS, 1),
    ],
    ids=["text", "any", "a long key", "a large set", "all letters", "all letters and a large set"],
)
def test_matching_holds_nobody_up_however_long_the_glob_and_the_keys_are(op, glob, key, count):
    """The daemon goes on with others after each part of an answer, be it an empty one."""
    store = Store()
    store.set_many({f"{key}{n}": b"1" for n in range(count)})
    content = ((keys, values, {}) for keys, values in store.view())
    parts = []

    def begin():
        parts.append(handlers.READERS[op](content, {"glob": glob}, 0))

    steps_of(begin, SLICE_STEPS)
    over = False

    def step():
        nonlocal over
        over = next(parts[0], None) is None

    while not over:
        steps_of(step, SLICE_STEPS)


@pytest.mark.parametrize("how", [{"prefix": "k"}, {"glob": "*1*"}, {"glob": "?*1*"}, {}])
@pytest.mark.parametrize("op", ["all", "dump"])
def test_it_is_all_of_one_moment_whatever_is_changed_between_the_slices(op, how):
    """Also where one chunk of the table takes several of them."""
    store = Store()
    store.set_many({f"k{n}" + "x" * 200: b"%d" % n for n in range(300)})
    before = store.view()
    expected = [
        (key, orjson.loads(value))
        for keys, values in before
        for key, value in zip(keys, values, strict=True)
        if how in ({}, {"prefix": "k"}) or "1" in key
    ]
    content = ((keys, values, {}) for keys, values in store.view())
    found = []
    for number, part in enumerate(handlers.READERS[op](content, how, 0)):
        store.set(f"k1 new {number}", b"0")
        store.set(f"k{(299 - number) % 300}" + "x" * 200, b"-1")
        store.remove(f"k{number * 7 % 300}" + "x" * 200)
        store.commit()
        if part:
            result = orjson.loads(part)
            found += result["items"].items() if op == "dump" else result["keys"]
    assert number > 3 or not how
    assert found == (expected if op == "dump" else [key for key, _ in expected])
