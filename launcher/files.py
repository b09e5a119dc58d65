"""Files that are either complete or absent, locks, and JSON that every parser accepts."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from launcher.errors import UserError

POLL_SECONDS = 0.2
"""Pause between two tries to take a lock that another process holds."""

NEW_SECONDS = 5.0
"""Age below which an empty draft is kept, because its writer may not have taken the lock yet."""

_DRAFT = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}\.draft")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file's content in one step.

    Readers find either the old content or the new, even after a power failure; the last of several writers wins. Text
    is written as UTF-8; characters that UTF-8 cannot encode, as some file names contain, are escaped.

    Raises OSError if the file cannot be written; the old content is then untouched.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with draft_file(path) as file:
        file.write(data)


def write_new(path: Path, content: str) -> None:
    """Write a file unless it exists; the first of several writers wins.

    Raises OSError if the file cannot be written.
    """
    with contextlib.suppress(FileExistsError), draft_file(path, replace=False) as file:
        file.write(content.encode())


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with "~" or "~name" expanded, or unchanged if there is no such user, as shells do."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


@contextlib.contextmanager
def draft_file(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """Yield a binary file that appears at `path`, complete and synced to disk, once the block ends without an error.

    A device or a named pipe at `path` is written to directly, as by any other program, and not replaced.

    Raises OSError if the file cannot be written and, without `replace`, FileExistsError if `path` exists by then.
    """
    if path.exists() and kind_of(path.stat()) not in ("a file", "a folder"):
        with path.open("wb") as file:
            yield file
        return
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.draft")
    try:
        with draft.open("wb") as file:
            hold(file.fileno(), wait=True)
            yield file
            file.flush()
            os.fsync(file.fileno())
            if replace:
                draft.replace(path)
            else:
                os.link(draft, path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
    sync(path.parent)


def hold(handle: int, *, wait: bool = False) -> bool:
    """Take the kernel's lock on an open file or folder; without `wait`, return False if another process holds it.

    The lock is released when the handle is closed or the process ends, however it ends. On file systems without locks
    the result is True.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return True
    return True


def try_lock(path: Path) -> Callable[[], None] | None:
    """Take the lock at `path` and return the function that releases it, or None if another process holds it.

    On file systems without locks, the lock counts as free. Raises OSError if the lock file cannot be created.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except NotImplementedError:
        return lambda: None
    return lock.release


@contextlib.contextmanager
def file_lock(path: Path, before_waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock at `path` during the block, so that processes that ask for it run one after the other.

    `before_waiting` is called once if another process holds the lock. On file systems without locks all processes run
    at once, so the block must be safe to run twice. Raises OSError if the lock file cannot be created.
    """
    if (release := try_lock(path)) is None:
        before_waiting()
        while (release := try_lock(path)) is None:
            time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        release()


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder to write into, which replaces `target`, complete and synced to disk, when the block ends.

    If the block fails, the new folder is removed, because half a folder on a full disk would leave no room for a
    complete one; `target` is then untouched. Only one writer at a time is supported.
    """
    draft, old = (target.with_name(f".{prefix}-{target.name}") for prefix in ("writing", "writing-over"))
    for leftover in (draft, old):
        if leftover.exists():  # from a writer that was killed
            shutil.rmtree(leftover)
    draft.mkdir(parents=True)
    try:
        yield draft
        for path in (*draft.rglob("*"), draft):
            sync(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    if target.exists():
        target.rename(old)
    draft.rename(target)
    sync(target.parent)
    if old.exists():
        shutil.rmtree(old)


def save_tensors(tensors: dict[str, Any], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the permissions that the umask grants.

    The library by itself makes the file readable by its owner alone (mode 0600). Raises OSError if the file cannot be
    written, and SafetensorError for tensors that the format cannot hold.
    """
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    with os_errors_of_safetensors(path):
        save_file(tensors, path, metadata)
    path.chmod(mode & 0o777)


@contextlib.contextmanager
def os_errors_of_safetensors(path: Path) -> Iterator[None]:
    """Turn the error that safetensors raises when a file operation fails, as on a full disk, into an OSError."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def write_json(path: Path, content: Any, *, indent: int | None = 1) -> None:
    """Write strict JSON with `write_atomic`. Raises OSError if the file cannot be written."""
    write_atomic(path, json_text(content, indent=indent) + "\n")


def json_text(content: Any, *, indent: int | None = None) -> str:
    """Return JSON as RFC 8259 defines it: numbers that are not finite, such as NaN, become null."""
    return json.dumps(_finite(content), indent=indent, ensure_ascii=False, allow_nan=False)


def kind_of(status: os.stat_result) -> str:
    """Return the kind of a path: "a file", "a folder", "a named pipe", "a socket" or "a device"."""
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(status.st_mode), "a device")


def check_file(path: str | os.PathLike[str]) -> os.stat_result:
    """Return the status of a file.

    Raises OSError for everything but a file: reading a named pipe or a device may never return or never end.
    """
    status = os.stat(path)  # noqa: PTH116
    if (kind := kind_of(status)) != "a file":
        raise OSError(f"{kind}, not a file")
    return status


def refuse_endless(folder: Path) -> None:
    """Raise UserError if a run dir or a folder in it contains anything but files and folders.

    Reading a named pipe or a device may never return or never end.
    """
    problems = []
    places = [folder, *folder.glob("*"), *folder.glob("checkpoints/*")]
    for place in filter(Path.is_dir, places):
        for path in place.iterdir():
            with contextlib.suppress(OSError):  # a link to nothing
                if (kind := kind_of(path.stat())) not in ("a file", "a folder"):
                    problems.append(f"{path}: {kind}, not a file; remove it")
    if problems:
        raise UserError(*sorted(problems))


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises UserError if it is missing, unreadable or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({why})") from error


@contextlib.contextmanager
def draft_folder(path: Path, *, alone: bool = False) -> Iterator[Path]:
    """Yield a new folder beside `path` to write into; the caller renames what is to be kept before the block ends.

    Whatever is left of the folder is then removed. Folders that earlier writers of `path` left behind when they were
    killed are removed first; those of living writers are locked and stay.

    Raises OSError if the folder cannot be created and, with `alone`, BlockingIOError if another writer is alive.
    """
    folder = path.with_name(f".{path.name}.{uuid.uuid4().hex}.draft")
    with _held(path.parent):  # so that the second of two writers that begin at once sees the folder of the first
        remove_drafts(path.parent, path.name)
        if alone and any(draft["name"] == path.name for draft in _drafts(path.parent)):
            raise BlockingIOError(errno.EWOULDBLOCK, "another process is writing it", str(path))
        folder.mkdir()
        handle = os.open(folder, os.O_RDONLY)
        hold(handle, wait=True)
    try:
        yield folder
    finally:
        os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk. Raises OSError if it cannot be synced."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_drafts(folder: Path, name: str | None = None) -> None:
    """Remove the drafts that killed writers left in a folder: those of the file or folder `name`, or all.

    The drafts of living writers are locked and stay.
    """
    if not folder.is_dir():
        return
    for draft in _drafts(folder):
        path = folder / draft.string
        if name is not None and draft["name"] != name:
            continue
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                # A draft is not locked yet in the moment after its creation; one that a dead writer left grows older.
                is_empty = not any(path.iterdir()) if path.is_dir() else path.stat().st_size == 0
                is_new = time.time() - path.stat().st_mtime < NEW_SECONDS
                if not hold(handle) or (is_empty and is_new):
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            finally:
                os.close(handle)


def _drafts(folder: Path) -> list[re.Match[str]]:
    matches = (_DRAFT.fullmatch(path.name) for path in folder.iterdir())
    return [match for match in matches if match is not None]


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        hold(handle, wait=True)
        yield
    finally:
        os.close(handle)


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content


def read_metrics(path: Path) -> dict[str, float]:
    """Return the numbers of a metrics.json by their names. Raises UserError for any other content."""
    content = read_json(path)
    if not isinstance(content, dict) or not all(_is_number(value) for value in content.values()):
        raise UserError(f"{path}: must hold numbers by their names")
    return metrics_from_json(content)


def _is_number(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return value.bit_length() < 1000  # fits into a float
    return value is None or isinstance(value, float)


def metrics_from_json(values: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as floats, with NaN for the null that `json_text` writes for numbers that are not finite."""
    return {name: math.nan if value is None else float(value) for name, value in values.items()}
