"""`cache`: what is stored of frozen networks is shown, and removed from the longest unused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from commands import ROOT, RunCli


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Three sets of features of a megabyte each; the newest belongs to a network whose name could be markup."""
    for number, backbone in enumerate(("Torchvision(name='resnet18')", "Timm(name='x')", "Own([red])")):
        folder = tmp_path / "cache" / "features" / f"{number:032x}"
        folder.mkdir(parents=True)
        (folder / "000000.rows").write_bytes(bytes(10**6))
        about = folder / "about.json"
        about.write_text(f'{{"images": {1000 + number}, "row_bytes": 8, "backbone": "{backbone}"}}')
        os.utime(about, (1.7e9 + number * 86400,) * 2)
    return tmp_path / "cache"


def test_nothing_is_stored(tmp_path: Path, run_cli: RunCli) -> None:
    done = run_cli("cache", env={"LAUNCHER_CACHE": str(tmp_path / "none")})
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{tmp_path / 'none'}: 0 bytes in 0 sets of features\n"
    assert not (tmp_path / "none").exists()


def test_what_is_stored_from_the_longest_unused(stored: Path, run_cli: RunCli) -> None:
    done = run_cli("cache", env={"LAUNCHER_CACHE": str(stored), "TZ": "UTC"})
    assert (done.code, done.err) == (0, "")
    header, *rows, last = done.out.splitlines()
    assert header.split() == ["used", "size", "images", "backbone"]
    assert [row.split()[0] for row in rows] == ["2023-11-14", "2023-11-15", "2023-11-16"]
    assert rows[2].split()[2:] == ["1.0", "MB", "1,002", "Own([red])"]
    assert last == f"{stored}: 3.0 MB in 3 sets of features"


def test_the_longest_unused_go_first(stored: Path, run_cli: RunCli) -> None:
    done = run_cli("cache", "--keep-gb", "0.0015", env={"LAUNCHER_CACHE": str(stored)})
    assert done.out.splitlines()[:2] == [f"removed {number:032x} (1.0 MB)" for number in range(2)]
    assert [path.name for path in (stored / "features").iterdir()] == [f"{2:032x}"]
    assert run_cli("cache", "--keep-gb", "0", env={"LAUNCHER_CACHE": str(stored)}).code == 0
    assert list((stored / "features").iterdir()) == []


def test_a_number_that_cannot_be(run_cli: RunCli) -> None:
    done = run_cli("cache", "--keep-gb", "-1", cwd=ROOT)
    assert done.code == 2
    assert "--keep-gb" in done.err
    assert "Traceback" not in done.err
