"""What the command-line scripts share: flags, logging, and how errors end."""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from encnet_jax.errors import UserError
from encnet_jax.migrations import CONFIG_KEYS

# On GPU jaxlib 0.11.2 aborts while it compiles the step ("Check failed" in
# triton_tiling_propagation.cc): a matrix product after a reshape, fused. Without those
# kernels it compiles, and is fast. A setting of the user's is left as it is.
_NO_TRITON_GEMM = "--xla_gpu_enable_triton_gemm=false"
_CACHE = "~/.cache/encnet_jax/compiled"
# Of glibc, which reads it at the start of a process and never again.
_LARGE_PAGES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")


def run(main: Callable[[list[str]], int | None]) -> None:
    """Parses the flags, runs a command and exits.

    A mistake of the user's is one line on standard error and exit code 2, without a
    traceback; so is a loss that is not finite, with exit code 1.

    Args:
        main: Gets the arguments that are not flags; returns the exit code or None.
    """
    # TensorFlow only reads data here; how it would compute is of no interest.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        arguments = flags.FLAGS(sys.argv)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        _fail(_renamed_flag(sys.argv) or _one_line(error), 2)
    _use_large_pages()
    _set_up()
    from encnet_jax.run.distributed import abort_on_failure

    with abort_on_failure():
        try:
            code = main(arguments)
        except UserError as error:
            _fail(_one_line(error), 2)
        except FloatingPointError as error:
            _fail(_one_line(error), 1)
        except KeyboardInterrupt:
            _fail("interrupted", 130)
    sys.exit(code or 0)


def _use_large_pages() -> None:
    """Starts the process over, on Linux, with large pages for large arrays.

    On a CPU each call of a compiled program takes its temporary memory, gigabytes in
    training, from the kernel and gives it back. In pages of 4 KiB the kernel's part is
    a tenth to a quarter of a training step. A setting of the user's is left as it is.
    """
    key, value = _LARGE_PAGES
    if sys.platform == "linux" and key not in os.environ:
        os.environ[key] = value
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _set_up() -> None:
    logging.basicConfig(format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("encnet_jax").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)
    flags_of_xla = os.environ.get("XLA_FLAGS", "")
    if _NO_TRITON_GEMM.split("=")[0] not in flags_of_xla:
        os.environ["XLA_FLAGS"] = f"{flags_of_xla} {_NO_TRITON_GEMM}".strip()
    import jax

    # Compiled programs are kept, so that the same command starts quickly again.
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(_CACHE))
    # Also the many small ones by which weights are drawn.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _renamed_flag(arguments: list[str]) -> str | None:
    """Returns what to say of the first flag with an old key; None if there is none."""
    for argument in arguments:
        key = argument.partition("=")[0].removeprefix("--config.")
        if key in CONFIG_KEYS:
            return f"--config.{key}: is now called --config.{CONFIG_KEYS[key]}"
    return None


def _one_line(error: Exception) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    lines = str(text).strip().splitlines()
    # A config file that raises comes with its traceback; the last line says what.
    return lines[-1] if "Traceback" in str(text) else " ".join(" ".join(lines).split())


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def config_and_workdir(
    workdir: str | None,
    evaluation: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[ConfigDict, Path]:
    """Returns the configuration that `--config` names, validated, and the workdir.

    Args:
        workdir: The flag of the workdir, or None for the default.
        evaluation: Settings of that group that have flags of their own.

    Raises:
        UserError: The file is missing, or a value is out of range.
    """
    from encnet_jax.config import default_workdir
    from encnet_jax.run.model_config import check_config

    config = flags.FLAGS.config
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    if not Path(file.partition(":")[0]).is_file():
        raise UserError(f"--config={file}: no such file")
    config.evaluation.update(evaluation)
    check_config(config)
    return config, Path(workdir or default_workdir(file))


def print_on_host0(text: str) -> None:
    """Prints a result; of many hosts the first does."""
    import jax

    if jax.process_index() == 0:
        print(text)


def numbers(flag: str, values: list[str]) -> tuple[float, ...]:
    """Returns the numbers of a list flag; raises `UserError` for what is none."""
    try:
        return tuple(float(value) for value in values)
    except ValueError as error:
        raise UserError(f"--{flag}={','.join(values)}: numbers are needed") from error


def reject_positional(arguments: list[str]) -> None:
    """Raises `UserError` if there are arguments that are no flags."""
    if arguments:
        raise UserError(f"{arguments[0]!r}: only flags (--name=value) are allowed")
