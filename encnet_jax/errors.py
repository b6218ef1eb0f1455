"""The error that command-line users are meant to read, and lists in its message."""

import errno
import importlib.util
import logging
import re

# `errno` of a full disk, and of an exhausted quota.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# `errno` of what the system refuses at the moment, whatever a file holds; from the
# third line on those of disks of other machines.
REFUSED = (
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM),
    *(errno.EROFS, errno.EINTR),
    *(errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.ECONNRESET),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH),
)
NO_DEVICE_MEMORY = "RESOURCE_EXHAUSTED"  # in the errors of JAX
_MAX_LISTED = 6  # names in a message before "and N more"
_MAX_LENGTH = 2000  # characters of a message
_LINE_BREAK = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_log = logging.getLogger(__name__)


class UserError(ValueError):
    """A mistake in the input: a config key, a flag, a file or a folder.

    The message is one line that names the item, its value and what is allowed. Commands
    print it on standard error and exit with code 2, without a traceback. Text quoted
    from a file may hold anything: line breaks become spaces, control characters, which
    a terminal would obey, become escapes, and very long text is cut.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Returns a text as a message is printed, see `UserError`."""
    text = _LINE_BREAK.sub(" ", text.strip())
    text = _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)
    if len(text) <= _MAX_LENGTH:
        return text
    half = _MAX_LENGTH // 2
    return f"{text[:half]} ... {text[-half:]}"


def errno_of(error: BaseException) -> int | None:
    """Returns the number of a system error; TensorStore has it in the text."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"(?:\[OS error |os_error_code=')(\d+)", str(error))
    return int(found[1]) if found else None


def refusal_of(error: BaseException) -> str:
    """Returns in one line what the system refuses at the moment; else ""."""
    if errno_of(error) not in (*DISK_FULL, *REFUSED):
        return ""
    name = getattr(error, "filename", None)
    reason = getattr(error, "strerror", None) or reason_of(error)
    return one_line(reason if name is None else f"{name}: {reason}")


def reason_of(error: BaseException) -> str:
    """Returns the message of an error in one line; its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def shortened(names: list[str]) -> str:
    """Joins the first names, and counts the rest."""
    rest = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def require_package(package: str, extra: str, purpose: str) -> None:
    """Raises `UserError` if a package is missing; names the extra that installs it.

    Args:
        package: Name that is imported.
        extra: Extra of this package that depends on it.
        purpose: What it is needed for, which starts the message.
    """
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"{purpose} needs {package}, which is not installed; "
            f"pip install 'encnet-jax[{extra}]'"
        )


def has_package(package: str, output: str) -> bool:
    """Returns whether a package is installed; logs it if not.

    Args:
        package: Name that is imported.
        output: What is left out without it, such as "figures".
    """
    found = importlib.util.find_spec(package) is not None
    if not found:
        _log.info("no %s: %s is not installed", output, package)
    return found
