"""The standard output, where nobody reads it any more (`... | head`), or it goes to a disk that is full."""

from __future__ import annotations

import contextlib
import errno
import os
import sys

_LOST = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def lost_output(error: OSError) -> OSError | None:
    """Return why the standard output cannot be written to, which then is not written to again; None where `error` came
    from something else."""
    if sys.stdout is None or error.errno not in _LOST:
        return None
    with contextlib.suppress(ValueError):  # closed, or no file
        output = sys.stdout.fileno()
        try:
            os.write(output, b"\n")
        except OSError as again:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, output)  # Python flushes once more at its end
            os.close(nowhere)
            return again
    return None
