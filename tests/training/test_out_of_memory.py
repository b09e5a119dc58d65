"""Out of memory in a training step: less at once, the same step, the same weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import out_of_memory
import tiny
from commands import ROOT, RunCli
from launcher import transforms
from processes import furthest, start, steps
from runs import rows, train

REPORTED = "out of memory: computing each micro-batch in"


def reported(run_dir: Path) -> list[str]:
    """The numbers of parts, in the order in which they were told."""
    lines = (run_dir / "log.txt").read_text().splitlines()
    return [line.partition(REPORTED)[2].split()[0] for line in lines if REPORTED in line]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that never runs out."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    train(tiny.parity, run_dir)
    return run_dir


@pytest.mark.slow
def test_a_step_that_runs_out_is_redone_in_parts(whole: Path, tmp_path: Path) -> None:
    train(out_of_memory.recipe, tmp_path, micro_batch_size="auto")
    assert reported(tmp_path) == ["2", "4", "8"]
    assert furthest(whole, tmp_path) < 1e-5
    assert steps(tmp_path) == steps(whole)
    ours, theirs = ([row["loss"] for row in rows(path, "step")] for path in (tmp_path, whole))
    assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.slow
def test_auto_without_a_fault_changes_no_bit(whole: Path, tmp_path: Path) -> None:
    train(tiny.parity, tmp_path, micro_batch_size="auto")
    assert reported(tmp_path) == []
    assert furthest(whole, tmp_path) == 0


@pytest.mark.slow
def test_without_auto_the_error_passes_through(tmp_path: Path) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        train(out_of_memory.recipe, tmp_path)


@pytest.mark.slow
def test_mixed_pairs_are_cut_only_after_they_are_mixed(tmp_path: Path) -> None:
    """In the last batch, of 26, eight parts have three or four images each."""
    augment = transforms.Augment(mixup_alpha=0.4)
    train(dataclasses.replace(tiny.parity, augment=augment), tmp_path / "whole")
    train(dataclasses.replace(out_of_memory.recipe, augment=augment), tmp_path / "parts", micro_batch_size="auto")
    assert reported(tmp_path / "parts") == ["2", "4", "8"]
    assert furthest(tmp_path / "whole", tmp_path / "parts") < 1e-5


@pytest.mark.slow
def test_batch_statistics_are_not_updated_by_what_is_redone(tmp_path: Path) -> None:
    train(out_of_memory.updating, tmp_path / "parts", micro_batch_size="auto")
    train(out_of_memory.updating, tmp_path / "micro", micro_batch_size=16)
    assert reported(tmp_path / "parts") == ["2"]
    assert furthest(tmp_path / "parts", tmp_path / "micro") < 1e-5


@pytest.mark.long
def test_one_process_of_two_runs_out(whole: Path, tmp_path: Path) -> None:
    words = ("--run-dir", str(tmp_path), "--workers", "1", "--micro-batch", "auto")
    done = start("torchrun", *words, recipe="tests/support/out_of_memory.py:second")
    assert done.returncode == 0, done.stderr
    assert reported(tmp_path) == ["2", "4"]
    assert done.stdout.count(REPORTED) == 2
    assert furthest(whole, tmp_path) < 1e-5
    assert steps(tmp_path) == steps(whole)


def test_a_single_image_that_does_not_fit_is_reported(run_cli: RunCli, tmp_path: Path) -> None:
    words = ("--run-dir", str(tmp_path / "run"), "--workers", "0", "--micro-batch", "auto")
    done = run_cli("tests/support/out_of_memory.py:never", *words, cwd=ROOT)
    assert done.code == 2
    assert done.err.splitlines() == [
        "error: --micro-batch auto: step 7 (full_finetune) ran out of memory with 1 image of its micro-batch of 32 at "
        "a time, and less is not possible; use a smaller backbone or image size"
    ]
