"""Completion in bash and zsh: the scripts are up to date, and they complete."""

from __future__ import annotations

import importlib.util
import shutil
import tomllib
from pathlib import Path

import pytest

from commanding import Terminal

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "client" / "completions"


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kept():
    return sorted(path.name for path in FOLDER.iterdir() if path.suffix == ".bash")


def test_the_scripts_of_pickledbctl_are_kept():
    assert "pickledbctl.bash" in kept()


@pytest.mark.parametrize("name", [name.removesuffix(".bash") for name in kept()])
def test_the_scripts_are_up_to_date(generate, name):
    for file_name, text in generate.scripts(name).items():
        assert (FOLDER / file_name).read_text(encoding="utf-8") == text, (
            "run: python client/completions/generate.py"
        )


def test_both_commands_can_be_generated(generate):
    for name in ("pickledbctl", "pickledbd"):
        assert all(name in text for text in generate.scripts(name).values())


def test_the_wheel_has_them_where_the_shells_look():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert list(shared) == sorted(shared)
    for source in shared:
        assert (ROOT / source).exists(), source
    for script in kept():
        name = script.removesuffix(".bash")
        assert shared[f"client/completions/{script}"] == f"share/bash-completion/completions/{name}"
        assert shared[f"client/completions/_{name}"] == f"share/zsh/site-functions/_{name}"


@pytest.fixture(params=["bash", "zsh"])
def shell(request, tmp_path):
    """A shell at a terminal that has loaded the script."""
    program = shutil.which(request.param)
    if program is None:
        pytest.skip(f"there is no {request.param}")
    (tmp_path / "data_file.db").touch()
    options = ["--norc", "--noprofile"] if request.param == "bash" else ["-f"]
    terminal = Terminal(*options, "-i", program=[program], env={"PS1": "> ", "HOME": str(tmp_path)})
    terminal.type(f"cd {tmp_path}\n")
    if request.param == "bash":
        terminal.type(f"source {FOLDER / 'pickledbctl.bash'}\n")
    else:
        terminal.type(f"fpath=({FOLDER} $fpath); autoload -U compinit; compinit -u -D\n")
    terminal.type("echo rea''dy\n")
    terminal.until("ready")
    yield terminal
    terminal.close()


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("pickledbctl persi", "pickledbctl persist"),
        ("pickledbctl -f data_f", "pickledbctl -f data_file.db"),
        ("pickledbctl export --prog", "pickledbctl export --progress"),
        ("pickledbctl import --format jsonl data_f", "data_file.db"),
        ("pickledbctl backup --forc", "backup --force"),
    ],
)
def test_tab_completes_commands_options_and_files(shell, typed, completed):
    shell.type(f"{typed}\t")
    shell.until(completed)
