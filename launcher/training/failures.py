"""Failures of a run's surroundings (a data worker killed, a disk full, a run dir gone), as lines with their cures."""

from __future__ import annotations

import contextlib
import errno
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from launcher.errors import UserError
from launcher.training.attempt import newest_step

_OUR_FOLDER = Path(__file__).parents[1]
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_FILES = (errno.EMFILE, errno.ENFILE)
_NOT_OURS = (*_NO_ROOM, *_NO_FILES, errno.EROFS, errno.EIO, errno.ESTALE)
"""Errors of a file system, wherever they occur."""
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - where Linux keeps the memory that processes share, not a temporary file
SHARED_MEMORY_CURE = (
    "enlarge it (a container's is 64 MB unless started with --shm-size=8g or --ipc=host), or use --workers 0 or a "
    "smaller --micro-batch"
)
OPEN_FILES_CURE = "raise the limit (ulimit -n 4096), or use fewer --workers"


class ImageError(UserError):
    """An image, or a batch of images, could not be loaded during a run."""


def line_of(error: BaseException) -> str:
    """Return the type and message of an error, with the place in the user's own code, or else where it was raised."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}{f': {message}' if message else ''} (at {place_of(error)})"


def place_of(error: BaseException) -> str:
    """Return file:line of the innermost frame in the user's own code, or else of where the error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and not Path(f.filename).is_relative_to(_OUR_FOLDER)]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


@contextlib.contextmanager
def part_at_work(field: str) -> Iterator[None]:
    """Turn any exception of a part, which may be the user's own, into a UserError that names the part's field."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{field}: {line_of(error)}") from error


@contextlib.contextmanager
def surroundings_reported(run_dir: Path) -> Iterator[None]:
    """Turn failures of a run's surroundings into a UserError that says where the same command continues."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ImageError):
            lines = error.problems
        elif isinstance(error, UserError) or (line := of_surroundings(error, run_dir)) is None:
            raise
        else:
            lines = (line,)
        step = newest_step(run_dir)
        kept = f"continues from step {step}" if step else "begins again"
        raise UserError(*(f"{line}; then the same command {kept}" for line in lines)) from error


def of_surroundings(error: BaseException, run_dir: Path | None = None) -> str | None:
    """Return a description of a failure of the surroundings, with its cure, or None if the error is of another kind.

    An OSError counts as one if it names a file of `run_dir` or is of a kind that only a file system raises.
    """
    if isinstance(error, OSError):
        return _of_file_system(error, run_dir)
    if not isinstance(error, RuntimeError) and type(error).__name__ != "SafetensorError":
        return None
    text = f"{error.__cause__ or ''} {error}"  # torch names the signal in one of the two
    if killed := re.search(
        r"DataLoader worker \(pid\(?s?\)?:? ?([\d, ]+)\) (?:is killed by signal: (.+?)\. |exited)", text
    ):
        if "bus error" in (killed[2] or "").lower():
            return (
                f"a data worker (process {killed[1]}) died for lack of shared memory in {SHARED_MEMORY}; "
                f"{SHARED_MEMORY_CURE}"
            )
        return (
            f"a data worker (process {killed[1]}) was killed{f' ({killed[2]})' if killed[2] else ''}, as happens where "
            "memory runs out; give the run more memory, or use fewer --workers"
        )
    if (
        "unable to allocate shared memory" in text
        or "unable to open shared memory" in text
        or "unable to resize" in text
    ):
        if "Too many open files" in text:
            return f"too many open files; {OPEN_FILES_CURE}"
        return f"{SHARED_MEMORY} is full, which data workers hand images over by; {SHARED_MEMORY_CURE}"
    if "Too many open files" in text or "items of ancillary data" in text:
        return f"too many open files; {OPEN_FILES_CURE}"
    if "os error 28" in text or "No space left on device" in text:
        return f"{run_dir or 'a file'}: no space left on the disk; make room"
    return None


def _of_file_system(error: OSError, run_dir: Path | None) -> str | None:
    named = None if error.filename is None else Path(str(error.filename))
    is_of_run = run_dir is not None and named is not None and named.absolute().is_relative_to(run_dir.absolute())
    if error.errno not in _NOT_OURS and not is_of_run:
        return None
    if error.errno in _NO_FILES:
        return f"{named or 'a file'}: too many open files; {OPEN_FILES_CURE}"
    if is_of_run and run_dir is not None and not run_dir.is_dir():
        return (
            f"{run_dir}: the run dir is gone; it was removed or renamed while the run was at work in it: bring it back"
        )
    why = error.strerror or str(error)
    cure = (
        "make room"
        if error.errno in _NO_ROOM
        else "make it writable"
        if error.errno != errno.EIO
        else "see to the disk"
    )
    return f"{named or run_dir or 'a file'}: cannot be read or written ({why}); {cure}"
