"""The command `encnet`: its verbs, their help, and what it refuses."""

import errno
import importlib
import os
import runpy
import subprocess
import sys
import tomllib

import jax
import pytest

from encnet_jax import cli, commands
from encnet_jax.commands import VERBS
from encnet_jax.errors import UserError, reason_of
from tests.commands import ROOT, environment, errors, run


def encnet(*arguments):
    return run("-m", "encnet_jax", *arguments)


def test_help_lists_every_verb_with_one_line():
    result = encnet("--help")
    assert result.returncode == 0 and not result.stderr
    listed = [
        line.split()[0] for line in result.stdout.splitlines() if line[:2] == "  "
    ]
    assert listed == list(VERBS)
    assert {"train", "evaluate", "compare", "predict", "export"} <= {*listed}
    assert {"data", "convert", "app"} <= {*listed}


@pytest.mark.parametrize("arguments", [["tarin", "--config=x"], []])
def test_unknown_verb_is_one_line(arguments):
    result = encnet(*arguments)
    assert result.returncode == 2 and not result.stdout
    assert len(result.stderr.splitlines()) == len(errors(result)) == 1
    assert all(verb in result.stderr for verb in VERBS)


@pytest.mark.parametrize(
    ("verb", "flag"), [("train", "--distributed"), ("data", "--manual_dir")]
)
def test_help_of_a_verb_describes_its_flags(verb, flag):
    result = encnet(verb, "--help")
    assert result.returncode == 0 and not result.stderr
    assert f"  {flag}: " in result.stdout
    module = importlib.import_module(f"encnet_jax.commands.{verb}")
    assert result.stdout.startswith(module.__doc__)


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_can_be_imported_together(verb):
    module = importlib.import_module(f"encnet_jax.commands.{verb}")
    assert module.__doc__ and module.define_flags and module.main


@pytest.mark.parametrize(
    ("verb", "script"),
    [
        ("train", "train.py"),
        ("evaluate", "evaluate.py"),
        ("predict", "predict.py"),
        ("export", "export.py"),
        ("data", "encnet_jax.data"),
        ("convert", "encnet_jax.convert"),
    ],
)
def test_scripts_are_the_verbs(monkeypatch, verb, script):
    verbs = []
    monkeypatch.setattr(commands, "run", verbs.append)
    if script.endswith(".py"):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    else:
        runpy.run_module(script, run_name="__main__")
    assert verbs == [verb]


def test_unknown_flag_is_one_line():
    result = run("train.py", "--no_such_flag=1")
    assert result.returncode == 2 and not result.stdout
    assert len(result.stderr.splitlines()) == len(errors(result)) == 1
    assert "no_such_flag" in result.stderr


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_missing_configuration_is_one_line(verb):
    result = encnet(verb, "--workdir=no/such")
    assert result.returncode == 2 and not result.stdout
    assert len(result.stderr.splitlines()) == len(errors(result)) == 1
    assert "--config" in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def get_config(:", "mine.py, line 1: SyntaxError: "),
        (
            "\ndef get_config():\n  return false",
            "mine.py, line 3: NameError: name '",
        ),
        ("import no_such", "mine.py, line 1: ModuleNotFoundError: No module named 'no"),
        (
            "def get_config(): return 3",
            "mine.py: get_config must return a ConfigDict",
        ),
        ("open('/no/such')", "mine.py: cannot be read: "),
    ],
)
def test_mistake_in_a_configuration_names_its_place(tmp_path, text, expected):
    path = tmp_path / "mine.py"
    path.write_text(text)
    result = encnet("train", f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 2 and not result.stdout
    assert len(result.stderr.splitlines()) == len(errors(result)) == 1
    assert expected in result.stderr


def test_installed_command_is_the_module():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, _, function = project["project"]["scripts"]["encnet"].partition(":")
    program = f"from {module} import {function}; {function}()"
    command = [sys.executable, "-c", program, "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == encnet("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ("import x --format=coco", 1),
        ("--format=coco import x", 2),
        ("--format coco import x", 3),
        ("--skip_invalid import x", 2),
        ("folder --output import", 0),
        ("folder", 0),
    ],
)
def test_import_may_follow_its_flags(arguments, place):
    assert commands._place_of_import(["encnet data", *arguments.split()]) == place


@pytest.fixture
def end(monkeypatch, capsys):
    """Returns a function: exit code and output of a command that raises an error."""
    monkeypatch.setattr(cli.flags, "FLAGS", lambda line: line)
    monkeypatch.setattr(cli, "_set_up", lambda: None)

    def end(error):
        def main(arguments):
            raise error

        with pytest.raises(SystemExit) as stopped:
            cli.run(main)
        return stopped.value.code, capsys.readouterr().err

    return end


def test_message_of_a_mistake_is_printed_as_it_is(end):
    assert end(UserError("a  b.png: no such file")) == (
        2,
        "error: a  b.png: no such file\n",
    )


@pytest.mark.parametrize(
    "error, message",
    [
        (OSError(errno.ENOSPC, "No space left", "x.json"), "x.json: No space left"),
        (OSError(errno.ENOSPC, "No space left"), "No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "a: Permission den"),
        (OSError(errno.EROFS, "Read-only file system", "a"), "a: Read-only file sys"),
        (ValueError("Cannot write [os_error_code='24']"), "Cannot write [os_error_"),
    ],
)
def test_what_the_system_refuses_is_one_line(end, error, message):
    code, output = end(error)
    assert code == 2 and output.startswith(f"error: {message}")
    assert output.count("\n") == 1


def test_too_little_memory_is_one_line_with_remedies(end):
    text = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 GiB.\nmore"
    for error in (jax.errors.JaxRuntimeError(text), MemoryError()):
        code, output = end(error)
        assert code == 1 and output.startswith("error: out of memory: ")
        assert "model.remat" in output and output.count("\n") == 1
        assert ("9 GiB" in output) == (type(error) is not MemoryError)


def test_other_errors_have_a_traceback(end):
    unrelated = RuntimeError("RESOURCE_EXHAUSTED: message larger than max")
    missing = FileNotFoundError(errno.ENOENT, "No such file")
    for error in (missing, unrelated, KeyError("x")):
        with pytest.raises(type(error)):
            end(error)


@pytest.mark.parametrize("place", ["main", "_set_up"])
def test_interrupt_ends_at_once_whatever_threads_do(place):
    program = (
        "import os, signal, threading, time\n"
        "from encnet_jax import cli\n"
        # Ignored in what a shell starts in the background, as these tests may be.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def interrupt(*arguments):\n"
        "    threading.Thread(target=time.sleep, args=(500,)).start()\n"
        "    print('printed before')\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(500)\n"
        f"if {place!r} == '_set_up':\n"
        "    cli._set_up = interrupt\n"
        "cli.run(interrupt)\n"
    )
    result = run("-c", program)
    assert result.returncode == 130 and result.stderr == "error: interrupted\n"
    assert result.stdout == "printed before\n"


def test_command_ends_well_without_standard_output():
    program = "from encnet_jax import cli; cli.run(lambda arguments: None)"
    shell = f'"{sys.executable}" -c "{program}" >&-'
    result = subprocess.run(
        ["sh", "-c", shell], cwd=ROOT, env=environment(), stderr=subprocess.PIPE
    )
    assert result.returncode == 0 and not result.stderr


@pytest.mark.parametrize("lines", [1, 100_000])
def test_reader_that_ends_early_costs_no_traceback(lines):
    """As `head` does; one line is still in the buffer when the command ends."""
    program = (
        "from encnet_jax import cli\n"
        f"cli.run(lambda arguments: print('line\\n' * {lines}))\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment(),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert result.returncode == 1 and not result.stderr


def test_reason_of_an_error_is_one_line_and_never_empty():
    assert reason_of(OSError("cannot  read\n  it")) == "cannot read it"
    assert reason_of(EOFError()) == "EOFError"
