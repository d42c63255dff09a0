"""What stands in systemd/, without running it: the units, the example configuration, the README."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from booted import COMMAND_SECONDS, REPO, UNITS, readme
from pickledbd import config

EXPOSURE_MAX = 1.0
"""Of 10, as `systemd-analyze security` reckons. By tcp, too, the service has no network."""

SERVICES = ["pickledbd.service", "pickledbd@.service"]
SOCKETS = ["pickledbd.socket", "pickledbd@.socket"]


@pytest.fixture
def analyze():
    if sys.platform != "linux":
        pytest.skip("systemd is Linux's")
    if not shutil.which("systemd-analyze"):
        if os.geteuid() == 0:
            pytest.fail("there is no systemd-analyze: apt-get install systemd", pytrace=False)
        pytest.skip("there is no systemd here")

    def analyze(*arguments):
        done = subprocess.run(
            ["systemd-analyze", *map(os.fspath, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        return done.returncode, done.stdout

    return analyze


def test_systemd_analyze_verify_finds_nothing_to_say_about_the_units(tmp_path, analyze):
    # It asks for the program to exist, so that of the tests' own environment stands in; in the
    # booted machine the units are verified as they are.
    program = Path(sysconfig.get_path("scripts")) / "pickledbd"
    for name in SERVICES + SOCKETS:
        text = (UNITS / name).read_text()
        assert ("\nExecStart=/opt/pickledbd/bin/pickledbd " in text) == name.endswith("service")
        text = text.replace("/opt/pickledbd/bin/pickledbd", os.fspath(program))
        (tmp_path / name).write_text(text)
    names = [tmp_path / name.replace("@", "@some") for name in SERVICES + SOCKETS]
    assert analyze("verify", *names) == (0, "")


@pytest.mark.parametrize("name", SERVICES)
def test_the_services_may_do_next_to_nothing(name, analyze):
    limit = f"--threshold={EXPOSURE_MAX * 10:.0f}"
    status, said = analyze("security", "--offline=yes", "--no-pager", limit, UNITS / name)
    assert status == 0, said
    assert float(re.search(r"Overall exposure level for \S+: ([\d.]+)", said)[1]) <= EXPOSURE_MAX


def test_the_template_differs_from_the_default_in_the_names_alone():
    def assignments(name):
        lines = (UNITS / name).read_text().splitlines()
        text = "\n".join(line for line in lines if not line.startswith("#"))
        return re.sub(r"\b(the system's pickleDB|the pickleDB) database( %i)?", "TITLE", text)

    def of_template(name):
        text = assignments(name.replace(".", "@."))
        text = text.replace("/test %i != default", "/true")
        return text.replace("pickledbd@%i", "pickledbd").replace("%i", "default")

    for name in ("pickledbd.service", "pickledbd.socket"):
        assert assignments(name) == of_template(name)


@pytest.mark.parametrize("name", SERVICES)
def test_each_line_of_a_service_is_explained(name):
    """Every paragraph of it begins with why, and has an assignment."""
    _, _, text = (UNITS / name).read_text().partition("[Service]\n")
    paragraphs = text.partition("[Install]")[0].strip().split("\n\n")
    assert len(paragraphs) > 5
    for paragraph in paragraphs:
        assert paragraph.startswith("# "), paragraph
        assert re.search(r"^\w+=", paragraph, re.MULTILINE), paragraph


def test_the_readme_installs_with_at_most_five_commands():
    assert len(readme("Install").strip().splitlines()) <= 5


def test_all_of_it_is_in_the_wheel():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert shared["systemd"] == "share/pickledbd/systemd"
    assert "/opt/pickledbd/share/pickledbd/systemd/pickledbd.sysusers" in readme("Install")


# The example configuration


def example():
    """Its options, each with the comment above them."""
    text = (UNITS / "pickledbd.toml").read_text()
    told, comment = {}, ""
    for line in text.splitlines():
        if line.startswith("# "):
            comment += line[1:]
        elif line.startswith("#"):
            (key, value), *_ = tomllib.loads(line[1:]).items()
            assert key not in told
            told[key] = comment, value
        else:
            assert line == ""
            comment = ""
    return told


def test_the_example_has_every_option_with_its_default():
    told = example()
    options = config.keys()
    assert told.keys() == options.keys()
    for key, (comment, value) in told.items():
        default = options[key].default
        if options[key].nargs == 0:
            assert value is False, key
        elif default is None:
            assert re.search(r"(No default\.|Default: \w)", comment), key
        else:
            assert value == default, key


def test_the_example_is_taken_as_it_is_and_with_each_option_in_force(tmp_path):
    path = UNITS / "pickledbd.toml"
    plain = config.options(["my.db"])
    plain.config = str(path)
    assert config.options(["my.db", "--config", str(path)]) == plain
    text = path.read_text()
    path = tmp_path / "all.toml"
    path.write_text(re.sub("^#(?! )", "", text, flags=re.MULTILINE))
    found = config.options(["--config", str(path)])
    assert found.location == "/var/lib/pickledbd/default.db"
