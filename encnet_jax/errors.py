"""The one error a user of the command line is meant to read."""

import errno

# Error numbers of a disk without space, and of a user's quota used up.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class UserError(ValueError):
    """A mistake in what the user gave: a config key, a file, a folder, a flag.

    The message is one line that names the thing, its value and what is allowed. The
    commands print it on standard error and exit with code 2, without a traceback.
    """
