"""The error that command-line users are meant to read, and lists in its message."""

import errno

# `errno` of a full disk, and of an exhausted quota.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_MAX_LISTED = 6  # names in a message before "and N more"


class UserError(ValueError):
    """A mistake in the input: a config key, a flag, a file or a folder.

    The message is one line that names the item, its value and what is allowed. Commands
    print it on standard error and exit with code 2, without a traceback.
    """


def shortened(names: list[str]) -> str:
    """Joins the first names, and counts the rest."""
    rest = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
