"""The error that command-line users are meant to read."""

import errno

# `errno` of a full disk, and of an exhausted quota.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class UserError(ValueError):
    """A mistake in the input: a config key, a flag, a file or a folder.

    The message is one line that names the item, its value and what is allowed. Commands
    print it on standard error and exit with code 2, without a traceback.
    """
