"""Files that are whole or absent: one way to write them, and JSON that every reader accepts."""

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
"""Between two tries for a lock that another process has."""

NEW_SECONDS = 5.0
"""An empty draft that is younger may be one whose writer has yet to take its lock."""

_DRAFT = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}\.draft")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that readers find the old content or the new, after a power failure, too; of two writers, one
    is last. Text is UTF-8; what is no valid text, as the names of some files, is escaped.

    Raises OSError where it cannot be written; the old content is then untouched.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with draft_file(path) as file:
        file.write(data)


def write_new(path: Path, content: str) -> None:
    """Write a file that is not there yet; of several writers the first one's is kept. Raises OSError like
    `write_atomic`."""
    with contextlib.suppress(FileExistsError), draft_file(path, replace=False) as file:
        file.write(content.encode())


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with its "~" or "~name" replaced; as it is where there is no such user, as shells leave it."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


@contextlib.contextmanager
def draft_file(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """Yield a binary file that is found at `path`, whole and on the disk, once the block has ended without an error.

    A device or a named pipe at `path` is written to, as by any other program, and not replaced. Raises OSError where it
    cannot be written, and, without `replace`, FileExistsError where `path` exists by then.
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
    """Take the kernel's lock on an open file or folder; without `wait`, return False where another process has it.

    It ends with the process, however that ends, or when the handle is closed. Where the file system has no locks, True.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return True
    return True


def try_lock(path: Path) -> Callable[[], None] | None:
    """Take the lock at `path`, and return what gives it back; None where another process has it.

    Where the file system has no locks, as if it were free. Raises OSError where the file cannot be made.
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
    """Let one process of those that ask for the lock at `path` go on, and the others after it.

    Where the file system has no locks, all go on: what they do must then be done twice without harm. Raises OSError.
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
    """Yield an empty folder to write into, which stands at `target`, whole and on the disk, once the block has ended.

    What stood there is gone then. Where the block fails, nothing is left of the new one: on a full disk half a folder
    is in the way of a whole one. One writer at a time.
    """
    draft, old = (target.with_name(f".{what}-{target.name}") for what in ("writing", "writing-over"))
    for left in (draft, old):
        if left.exists():  # by a writer that was killed
            shutil.rmtree(left)
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
    """Write a safetensors file that, like all others, may be read by whom the umask lets; the library alone makes it
    the owner's (mode 0600). Raises OSError, and SafetensorError for tensors that the format cannot hold."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    with os_errors_of_safetensors(path):
        save_file(tensors, path, metadata)
    path.chmod(mode & 0o777)


@contextlib.contextmanager
def os_errors_of_safetensors(path: Path) -> Iterator[None]:
    """Turn the error that safetensors raises where the system refuses a file, as on a full disk, into an OSError."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def write_json(path: Path, content: Any, *, indent: int | None = 1) -> None:
    """Write strict JSON with `write_atomic`. Raises OSError like it."""
    write_atomic(path, json_text(content, indent=indent) + "\n")


def json_text(content: Any, *, indent: int | None = None) -> str:
    """Return JSON as RFC 8259 has it: a number that is not finite, which Python would write as NaN, becomes null."""
    return json.dumps(_finite(content), indent=indent, ensure_ascii=False, allow_nan=False)


def kind_of(status: os.stat_result) -> str:
    """Return "a file", "a folder", "a named pipe", "a socket" or "a device"."""
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(status.st_mode), "a device")


def check_file(path: str | os.PathLike[str]) -> os.stat_result:
    """Return the status of a file. Raises OSError for what has no end, or never answers: a named pipe, a device."""
    status = os.stat(path)  # noqa: PTH116
    if (kind := kind_of(status)) != "a file":
        raise OSError(f"{kind}, not a file")
    return status


def refuse_endless(folder: Path) -> None:
    """Raise UserError where a run dir, or a folder in it, holds what is neither file nor folder: a named pipe or a
    device never answers, or has no end."""
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
    """Return the content of a JSON file. Raises UserError where it is missing, unreadable or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({why})") from error


@contextlib.contextmanager
def draft_folder(path: Path, *, alone: bool = False) -> Iterator[Path]:
    """Yield a new folder beside `path` to write into; it is gone at the end, and what is to stay is renamed before.

    Those that earlier writers of `path` left when they were killed are removed first; living ones hold theirs. Raises
    OSError where it cannot be made, and BlockingIOError where it is to be `alone` and another writer lives.
    """
    folder = path.with_name(f".{path.name}.{uuid.uuid4().hex}.draft")
    with _held(path.parent):  # of two writers that begin at once, the second sees the first one's folder
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
    """Return when a file, or a folder's list of files, is on the disk. Raises OSError where it cannot be."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_drafts(folder: Path, name: str | None = None) -> None:
    """Remove what writers (of the file or folder `name`, or all) that were killed left in a folder; that of a living
    one, which holds it, stays."""
    if not folder.is_dir():
        return
    for draft in _drafts(folder):
        path = folder / draft.string
        if name is not None and draft["name"] != name:
            continue
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                # A moment after it was made a draft is not held yet; what a dead writer left gets older.
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
    """Return the numbers of a metrics.json by their names. Raises UserError for all else."""
    content = read_json(path)
    if not isinstance(content, dict) or not all(_is_number(value) for value in content.values()):
        raise UserError(f"{path}: must hold numbers by their names")
    return metrics_from_json(content)


def _is_number(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return value.bit_length() < 1000  # a float can hold it
    return value is None or isinstance(value, float)


def metrics_from_json(values: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as they were before `json_text` wrote null for those that are not finite."""
    return {name: math.nan if value is None else float(value) for name, value in values.items()}
