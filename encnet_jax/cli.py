"""Shared by the command-line scripts: flags, logging, and errors as exit codes."""

import contextlib
import difflib
import io
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.tuple_parser import TupleParser

from encnet_jax.config import default, default_workdir, find_config, leaves
from encnet_jax.errors import (
    NO_DEVICE_MEMORY,
    UserError,
    one_line,
    reason_of,
    refusal_of,
)
from encnet_jax.files import user_path
from encnet_jax.migrations import CONFIG_KEYS
from encnet_jax.run.plugins import import_plugins
from encnet_jax.run.startup import set_xla_flags

_log = logging.getLogger(__name__)
_CACHE = "~/.cache/encnet_jax/compiled"
# `define_config` defines a flag of the verb that calls it, whose help lists it.
flags.disclaim_key_flags()


class _ConfigParser(flags.ArgumentParser):
    """Parses the value of `--config`, a path, or the name of a recipe."""

    def __init__(self, load_file: flags.ArgumentParser):
        self._load_file = load_file

    def parse(self, argument: str) -> ConfigDict:
        """Returns the configuration; raises `UserError` if there is none."""
        return self._load_file.parse(find_config(argument))

    def flag_type(self) -> str:
        """Returns what the flag's help calls its values."""
        return self._load_file.flag_type()


class _TupleParser(TupleParser):
    """Parses the value of a key that is a list; no text, or None, empties it."""

    def parse(self, argument: object) -> tuple:
        """Returns the elements."""
        return () if argument in ("", "None") else super().parse(argument)


def define_config() -> None:
    """Defines `--config`, and `--config.KEY` for each key of the configuration."""
    config_flags.register_flag_parser_for_type(tuple, _TupleParser())
    config_flags.DEFINE_config_file(
        "config", None, "Recipe, such as camvid or camvid:cpu, or a Python file."
    )
    flag = flags.FLAGS["config"]
    flag.parser = _ConfigParser(flag.parser)


def run(main: Callable[[list[str]], int | None]) -> None:
    """Parses the flags, runs a command and exits.

    A `UserError`, a bad flag, or a file that the system refuses ends in one line on
    standard error and exit code 2; a loss that is not finite, or too little memory, in
    one line and exit code 1. None of them prints a traceback.

    Args:
        main: Takes the positional arguments; returns the exit code, or None for 0.
    """
    try:
        _run(main)
    except KeyboardInterrupt:
        _interrupted()


def _run(main: Callable[[list[str]], int | None]) -> None:
    # TensorFlow only reads data here; its notes about computing are noise.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        arguments = flags.FLAGS(sys.argv)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        _fail(_wrong_key(sys.argv) or _message(_raised_by_config(error)), 2)
    except (ImportError, NameError, SyntaxError) as error:
        _fail(_place_in_config(error), 2)
    _set_up()
    from encnet_jax.run.distributed import abort_on_failure

    with abort_on_failure():
        try:
            import_plugins()
            code = main(arguments)
            _flush_output()  # or a reader that has ended is met at exit
        except UserError as error:
            _fail(_message(error), 2)
        except FloatingPointError as error:
            _fail(_message(error), 1)
        except KeyboardInterrupt:
            _interrupted()
        except BrokenPipeError:
            _discard_output()
            sys.exit(1)
        except Exception as error:
            if not (message := _shortage(error)):
                raise
            _fail(message, 2 if refusal_of(error) else 1)
    sys.exit(code or 0)


def _interrupted() -> NoReturn:
    print("error: interrupted", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        _flush_output()
    # A regular exit can crash in threads that are compiling.
    os._exit(130)


def _flush_output() -> None:
    if sys.stdout is not None:  # it is where the command was started without one
        sys.stdout.flush()


def _discard_output() -> None:
    """Lets what is still printed, also at exit, go nowhere: its reader has ended."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _shortage(error: Exception) -> str:
    """Returns what the machine lacks or refuses; "" for an error of another kind."""
    if refusal := refusal_of(error):
        return refusal
    import jax

    text = str(error)
    from_jax = isinstance(error, jax.errors.JaxRuntimeError)
    if (from_jax and NO_DEVICE_MEMORY in text) or isinstance(error, MemoryError):
        reason = one_line((text.strip().splitlines() or ["no memory left"])[0][:200])
        return (
            f"out of memory: {reason}; smaller batches or images take less, in "
            "training also model.remat and grad_accum_steps (docs/memory.md)"
        )
    return ""


def _set_up() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File and class names that the terminal cannot show must not end a command.
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("encnet_jax").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)
    set_xla_flags()
    import jax

    # Compiled programs are cached on disk: the next start of the command is faster.
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(_CACHE))
    # Also the many small ones that initialize weights.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _wrong_key(arguments: list[str]) -> str | None:
    """Returns the message for the first flag with an old or unknown key, or None."""
    known = dict(leaves(default()))
    for argument in arguments:
        # absl also takes one dash, and `no` in front of a Boolean.
        flag = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if not flag or (key := flag[1]) in known:
            continue
        if key in CONFIG_KEYS:
            return f"--config.{key}: is now called --config.{CONFIG_KEYS[key]}"
        near = difflib.get_close_matches(key, known, 1)
        hint = f"; is it --config.{near[0]}?" if near else ""
        return f"--config.{key}: no such key of the configuration{hint}"
    return None


def _raised_by_config(error: Exception) -> BaseException:
    """Returns the `UserError` of a config file itself, otherwise the error.

    ml_collections raises it anew with a traceback in the text, and absl that one.
    """
    wrapped = error.__context__
    inner = wrapped.__context__ if isinstance(wrapped, UserError) else None
    return inner if isinstance(inner, UserError) else error


def _check_config_file(config: object, name: str) -> None:
    """Raises `UserError` if a config file returns something else, or did not end."""
    if isinstance(config, ConfigDict):
        return
    try:
        config.seed  # type: ignore[attr-defined]  # noqa: B018
    except OSError as error:  # kept by ml_collections until something is read
        reason = reason_of(error.__cause__ or error)
        raise UserError(f"{name}: cannot be read: {reason}") from error
    except AttributeError:
        pass
    kind = type(config).__name__
    raise UserError(f"{name}: get_config must return a ConfigDict, not {kind}")


def _place_in_config(error: ImportError | NameError | SyntaxError) -> str:
    """Returns what is wrong with a config file that is no sound Python, and where."""
    *_, frame = traceback.extract_tb(error.__traceback__)
    file, line, text = frame.filename, frame.lineno, str(error)
    if isinstance(error, SyntaxError) and os.path.isfile(error.filename or ""):
        file, line, text = str(error.filename), error.lineno, error.msg
    return one_line(f"{file}, line {line}: {type(error).__name__}: {text}")


def _message(error: BaseException) -> str:
    """Returns what is printed of an error, in one line."""
    if isinstance(error, UserError):  # it is, and file names may hold double spaces
        return str(error)
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    lines = str(text).strip().splitlines()
    # absl reports a config file that raises with its traceback; the last line counts.
    if "Traceback" in str(text):
        return lines[-1]
    return " ".join(" ".join(lines).split())


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def config_and_workdir(
    workdir: str | None, *, check: bool = True
) -> tuple[ConfigDict, Path]:
    """Returns the configuration that `--config` names, validated, and the workdir.

    Args:
        workdir: Value of the workdir flag, or None for the default.
        check: Whether to validate; otherwise the caller does.

    Raises:
        UserError: A value is out of range.
    """
    from encnet_jax.run.model_config import check_config

    config = flags.FLAGS.config
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    _check_config_file(config, name)
    if check:
        check_config(config)
    folder = default_workdir(name) if workdir is None else workdir
    return config, flag_path("workdir", folder)


def flag_path(flag: str, value: str | Path) -> Path:
    """Returns the path that a flag gives; see `user_path`, whose errors it names."""
    try:
        return user_path(value)
    except UserError as error:  # it starts with the path
        raise UserError(f"--{flag}={error}") from error


def run_folder(workdir: str) -> Path:
    """Returns the folder that `--workdir` names, downloaded if it is `hf://...`.

    Raises:
        UserError: It cannot be downloaded.
    """
    from encnet_jax.run import hub
    from encnet_jax.run.model_folder import find_model_folder

    if workdir.startswith(hub.PREFIX):
        return find_model_folder(workdir)
    return flag_path("workdir", workdir)


def overridden_keys() -> list[str]:
    """Returns the keys that flags set, such as `data.base_size`."""
    return list(config_flags.get_override_values(flags.FLAGS["config"]))


def warn_of_unread_settings(config: ConfigDict, keys: Iterable[str]) -> None:
    """Logs a line for each key that a flag sets and nothing reads."""
    from encnet_jax.run.unread_settings import unread_settings

    for line in unread_settings(config, keys):
        _log.warning("WARNING: --config.%s", line)


def command_line() -> str:
    """Returns the command line as a shell would take it."""
    program, *arguments = sys.argv
    program = f"python {program}" if program.endswith(".py") else program
    return " ".join([program, *map(shlex.quote, arguments)])


def print_on_host0(text: str) -> None:
    """Prints a result on the first host only."""
    import jax

    if jax.process_index() == 0:
        print(text)


def numbers(flag: str, values: list[str]) -> tuple[float, ...]:
    """Returns a list flag as floats; raises `UserError` for anything else."""
    try:
        return tuple(float(value) for value in values)
    except ValueError as error:
        raise UserError(f"--{flag}={','.join(values)}: must be numbers") from error


def reject_positional(arguments: list[str]) -> None:
    """Raises `UserError` if there are positional arguments."""
    if arguments:
        raise UserError(f"{arguments[0]!r}: only flags (--name=value) are allowed")
