"""The standard output, where nobody reads it any more (`... | head`), or it goes to a disk that is full."""

from __future__ import annotations

import contextlib
import os
import sys


def lost_output(error: OSError) -> OSError | None:
    """Return why the standard output cannot be written to, which then is not written to again; None where `error` came
    from something else."""
    found: OSError | None = error if isinstance(error, BrokenPipeError) else None
    with contextlib.suppress(ValueError):  # closed, or no file
        output = sys.stdout.fileno()
        try:
            os.write(output, b"\n")
        except OSError as again:
            found = again
        if found is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # Python flushes once more at its end
    return found
