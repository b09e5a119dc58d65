"""What is said where the device waits for images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import tiny
from launcher import phases
from launcher.training import input_wait
from launcher.training.input_wait import advice
from runs import train

GPU: dict[str, Any] = {"on_cpu": False, "is_prepared": False}


def test_more_workers_where_cores_are_idle() -> None:
    reported = advice(0.43, num_workers=2, num_cpus=8, **GPU)
    assert reported.startswith("data: the device waited 43% of the epoch; ")
    # Two workers that make 57 % of what is wanted: four are enough.
    assert "--workers 4 would use idle cores (8 for this process, 2 at work)" in reported
    assert "'prepare' and --prepared would spare decoding them" in reported


def test_no_more_workers_than_cores() -> None:
    assert "--workers 7 would use the idle cores" in advice(0.9, num_workers=4, num_cpus=8, **GPU)
    assert "--workers" not in advice(0.9, num_workers=7, num_cpus=8, **GPU)
    assert "--workers 1 " in advice(0.5, num_workers=0, num_cpus=8, **GPU)
    assert "--workers" not in advice(0.5, num_workers=0, num_cpus=1, **GPU)


def test_on_a_cpu_the_network_needs_the_cores() -> None:
    reported = advice(0.4, num_workers=1, num_cpus=8, on_cpu=True, is_prepared=False)
    assert reported == "data: the device waited 40% of the epoch; 'prepare' and --prepared would spare decoding them"


def test_large_images_are_named() -> None:
    reported = advice(0.4, num_workers=7, num_cpus=8, image_size=(4000, 3000), short_side=273, **GPU)
    assert reported.endswith("'prepare' and --prepared would spare decoding 4000x3000 where 273 px are enough")
    assert "4000" not in advice(0.4, num_workers=7, num_cpus=8, image_size=(4000, 200), short_side=273, **GPU)


def test_a_prepared_copy_on_all_cores() -> None:
    reported = advice(0.4, num_workers=3, num_cpus=4, on_cpu=False, is_prepared=True)
    assert reported.endswith("; 4 cores for this process are too few, or the disk of the images too slow")


@pytest.mark.slow
def test_reported_once_a_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dataclasses.replace(
        tiny.recipe, freeze_plan=phases.linear_probe(epochs=3) + phases.full_finetune(epochs=2)
    )
    train(recipe, tmp_path / "brief")  # an epoch of milliseconds is not worth a word
    assert "the device waited" not in (tmp_path / "brief" / "log.txt").read_text()
    monkeypatch.setattr(input_wait, "WORTH_A_WORD", 0.0)
    monkeypatch.setattr(input_wait, "WORTH_SECONDS", 0.0)
    train(recipe, tmp_path / "run")
    reported = [line for line in (tmp_path / "run" / "log.txt").read_text().splitlines() if "the device waited" in line]
    assert len(reported) == 2
