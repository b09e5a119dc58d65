"""Files are whole or absent; JSON is strict; numbers keep their digits."""

from __future__ import annotations

import doctest
import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from commands import ROOT
from launcher import files, text
from launcher.errors import UserError
from launcher.files import expanded, remove_drafts, save_tensors, write_atomic


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_numbers_keep_their_digits_at_any_size() -> None:
    assert doctest.testmod(text).attempted >= 1
    assert doctest.testmod(text).failed == 0
    assert text.number(float("nan")) == "nan"


def test_what_is_not_finite_is_null_and_invalid_text_is_escaped(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    files.write_json(file, {"a": [1.0, float("nan"), (float("inf"), True)], "name": "caf\udce9"})
    found = json.loads(file.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert found == {"a": [1.0, None, [None, True]], "name": "caf\udce9"}


@pytest.mark.slow
def test_a_writer_killed_before_the_rename_leaves_the_old_content_and_a_draft_that_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    files.write_atomic(file, "old")
    source = (
        "import os, pathlib, sys; from launcher import files\n"
        "pathlib.Path.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        "files.write_atomic(pathlib.Path(sys.argv[1]), 'new')"
    )
    done = subprocess.run([sys.executable, "-c", source, file], cwd=ROOT)
    assert done.returncode == -9
    assert file.read_text() == "old"
    assert len(names(tmp_path)) == 2
    files.remove_drafts(tmp_path)
    assert names(tmp_path) == ["x.txt"]


def test_a_write_that_fails_leaves_the_old_content_and_no_draft(tmp_path: Path) -> None:
    (tmp_path / "x.txt").mkdir()
    with pytest.raises(OSError, match="directory"):
        files.write_atomic(tmp_path / "x.txt", "new")
    assert names(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_damaged_json_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json: cannot be read") as reported:
        files.read_json(tmp_path / "x.json")
    assert len(reported.value.problems) == 1


@pytest.mark.slow
def test_drafts_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    """A writer that is killed in each of the two ways, and one that lives, in processes of their own."""
    program = """
import os, pathlib, signal, sys
from launcher import files
path = pathlib.Path(sys.argv[1])
if sys.argv[2] == "file":
    os.fsync = lambda _: (print("here", flush=True), sys.stdin.readline())
    files.write_atomic(path, "half")
with files.draft_folder(path) as folder:
    (folder / "half").write_text("half")
    print("here", flush=True)
    sys.stdin.readline()
"""
    for kind in ("file", "folder"):
        target = tmp_path / f"made.{kind}"
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(target), kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
            for _ in range(2)
        ]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"here\n"
        drafts = set(tmp_path.iterdir())
        assert len(drafts) == 2
        remove_drafts(tmp_path)
        assert set(tmp_path.iterdir()) == drafts
        writers[0].kill()
        writers[0].communicate()
        remove_drafts(tmp_path, "made")  # of another name
        assert set(tmp_path.iterdir()) == drafts
        remove_drafts(tmp_path, target.name)
        assert len(list(tmp_path.iterdir())) == 1
        writers[1].kill()
        writers[1].communicate()
        remove_drafts(tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_a_folder_is_written_by_one_process_where_it_is_to_be_alone(tmp_path: Path) -> None:
    target = tmp_path / "copy"
    with files.draft_folder(target, alone=True) as draft:
        with pytest.raises(BlockingIOError), files.draft_folder(target, alone=True):
            pass
        with files.draft_folder(tmp_path / "other", alone=True):
            pass
        draft.rename(target)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    (tmp_path / f".copy.{32 * 'a'}.draft").mkdir()
    os.utime(tmp_path / f".copy.{32 * 'a'}.draft", (0, 0))  # of a process that was killed
    with files.draft_folder(target, alone=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_of_several_writers_the_first_is_kept(tmp_path: Path) -> None:
    files.write_new(tmp_path / "x.json", "first")
    files.write_new(tmp_path / "x.json", "second")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x.json": "first"}


def test_tensors_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_tensors({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
        (tmp_path / "b").write_text("")
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.slow
def test_tensors_on_a_full_disk_raise_what_the_system_says(full_disk: Path) -> None:
    """safetensors has an error of its own, which callers would take for tensors that it cannot hold."""
    file = full_disk / "weights.safetensors"
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_tensors({"weight": torch.zeros(10_000)}, file)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(file))


def test_a_home_of_nobody_is_a_name() -> None:
    assert expanded("~") == Path.home()
    assert expanded("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")


@pytest.mark.slow
def test_a_device_and_a_pipe_are_written_to_and_stay(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE, text=True) as reader:
        write_atomic(tmp_path / "pipe", "whole")
        assert reader.communicate()[0] == "whole"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    if os.getuid() == 0:
        os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        write_atomic(tmp_path / "null", "gone")
        assert stat.S_ISCHR((tmp_path / "null").stat().st_mode)
    assert {path.name for path in tmp_path.iterdir()} <= {"pipe", "null"}
