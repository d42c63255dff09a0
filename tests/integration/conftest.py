"""The booted machine, which all tests of the units share."""

from __future__ import annotations

import contextlib
import shutil

import pytest

from booted import Machine, fetch_wheels, readme


@pytest.fixture(scope="session")
def machine(tmp_path_factory):
    """A machine on which the README's commands for installing were run."""
    if not shutil.which("systemd-nspawn"):
        pytest.fail("there is no systemd-nspawn: apt-get install systemd-container", pytrace=False)
    directory = tmp_path_factory.mktemp("systemd")
    wheels = directory / "wheels"
    fetch_wheels(wheels)
    with contextlib.closing(Machine(directory, wheels)) as booted:
        booted.run(readme("Install"))
        booted.run("useradd --groups pickledbd member; useradd stranger")
        yield booted
