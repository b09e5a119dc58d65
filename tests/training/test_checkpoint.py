import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.errors import UserError
from launcher.training import checkpoint
from launcher.training.best import Best
from launcher.training.checkpoint import Checkpoints, Progress, State


def state(step: int, value: float = 1.0, **progress: Any) -> State:
    return State(
        progress=Progress(step=step, phase=1, loss_sum=0.1 + 0.2, **progress),
        model={"b": torch.full((2,), value)},
        optimizer={"state": {"b": {"momentum_buffer": torch.full((2,), value)}}, "scaler": None},
        ema={"b": torch.full((2,), -value)},
    )


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    found = Checkpoints(tmp_path / "checkpoints")
    found.save_base({"a": torch.ones(3), "b": torch.zeros(2)})
    return found


def test_what_is_saved_comes_back(checkpoints: Checkpoints) -> None:
    best = Best("accuracy", 0.5, 6, "probe", 1)
    folder = checkpoints.save(state(6, 2.0, phase_best=best))
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "ema.safetensors",
        "optimizer.pt",
        "progress.json",
        "MANIFEST.json",
    }
    loaded = checkpoints.load(checkpoints.newest())  # type: ignore[arg-type]
    assert loaded.progress == state(6, 2.0, phase_best=best).progress
    assert loaded.model["a"].tolist() == [1, 1, 1]
    assert loaded.model["b"].tolist() == [2, 2]
    assert loaded.ema["b"].tolist() == [-2, -2]
    assert loaded.optimizer["state"]["b"]["momentum_buffer"].tolist() == [2, 2]


def test_last_and_best_are_kept_and_others_go(checkpoints: Checkpoints) -> None:
    checkpoints.save(state(5))
    best = Best("accuracy", 0.5, 5, "probe", 1)
    for step in (10, 15, 1_000_000):
        checkpoints.save(state(step, run_best=best))
    names = sorted(path.name for path in checkpoints.folder.iterdir())
    assert names == ["base", "step-000005", "step-1000000"]
    assert checkpoints.newest() == checkpoints.of_step(1_000_000)


def test_a_step_is_not_taken_for_one_that_begins_with_its_digits(checkpoints: Checkpoints) -> None:
    """step-100000 and step-1000000: six digits are no end."""
    best = Best("accuracy", 0.5, 100_000, "probe", 1)
    for step in (100_000, 1_000_000, 1_000_000, 1_000_001):
        checkpoints.save(state(step, float(step), run_best=best))
    names = sorted(path.name for path in checkpoints.folder.iterdir())
    assert names == ["base", "step-100000", "step-1000001"]
    assert checkpoints.load(checkpoints.of_step(100_000)).model["b"].tolist() == [100_000, 100_000]
    assert not checkpoints.of_step(1_000_000).exists()


def test_folders_that_are_no_checkpoints_are_left_alone(checkpoints: Checkpoints) -> None:
    others = ["step-", "step-12", "step-000005-x", "step-000005 copy", "step-\N{ARABIC-INDIC DIGIT ONE}00000"]
    for name in others:
        (checkpoints.folder / name).mkdir()
    checkpoints.save(state(5))
    checkpoints.save(state(6))
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == sorted([*others, "base", "step-000006"])
    assert checkpoints.newest() == checkpoints.of_step(6)
    assert checkpoints.refused == []


@pytest.mark.parametrize(
    "file", ["model.safetensors", "ema.safetensors", "optimizer.pt", "progress.json", "MANIFEST.json"]
)
@pytest.mark.parametrize("damage", ["missing", "short", "flipped"])
def test_a_damaged_checkpoint_is_passed_over_and_reported(checkpoints: Checkpoints, file: str, damage: str) -> None:
    best = Best("accuracy", 0.5, 5, "probe", 1)
    checkpoints.save(state(5, run_best=best))
    path = checkpoints.save(state(9, run_best=best)) / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_bytes(content[:-3])
    else:
        path.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
    assert checkpoints.newest() == checkpoints.of_step(5)
    assert len(checkpoints.refused) == 1
    assert "step-000009" in checkpoints.refused[0]
    with pytest.raises(UserError, match="step-000009"):
        checkpoints.load(checkpoints.of_step(9))


def test_a_save_that_died_leaves_the_older_one_whole(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save(state(5))

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(state(9))
    assert checkpoints.newest() == checkpoints.of_step(5)
    checkpoints.save(state(9))
    assert checkpoints.newest() == checkpoints.of_step(9)
    assert not list(checkpoints.folder.glob(".writing-*"))


class Boom:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (saved({"state": Boom()}), "optimizer.pt holds more than tensors and plain values"),
        (b"abc", "optimizer.pt is not what torch.save writes"),
        (b"\x80\x02h\x05.", "optimizer.pt is not what torch.save writes"),
        (b"", "optimizer.pt is not what torch.save writes"),
    ],
)
def test_nothing_is_unpickled(checkpoints: Checkpoints, content: bytes, line: str) -> None:
    """The hashes are right: someone has written the file and the manifest."""
    folder = checkpoints.save(state(5))
    (folder / "optimizer.pt").write_bytes(content)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    digest = {"bytes": len(content), "blake2b": checkpoint._hash(folder / "optimizer.pt")}
    manifest["files"]["optimizer.pt"] = digest
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"005: cannot be read, though its hashes are right \({line}\); remove it"):
        checkpoints.load(folder)
