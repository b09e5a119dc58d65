"""AdamW on several splits of the batch: what may differ between them, by how much, and why."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import attention_splits
from commands import ROOT, SUPPORT, RunCli
from launcher import optim
from launcher.training.checkpoint import Checkpoints
from launcher.verify.weight_equality import compare
from processes import alone, start

pytestmark = pytest.mark.slow

PATHS = {"PYTHONPATH": f"{ROOT}:{SUPPORT}"}

# A step of Adam is lr * m / sqrt(v), at most about lr. Rounding changes a gradient by about 2e-6 of the root mean
# square of all gradients, and the smallest sound ones here are 1 / 250 of that, so m / sqrt(v) changes by 5e-4 at most,
# and a weight, over all steps, by sum(lr) * 5e-4, which is 3e-6. Seen was 1.3e-7 at most, the last bit of a 1.
SHARE_OF_THE_WAY = 5e-4


@pytest.fixture(scope="module", params=["packed", "separate"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    run_dir = tmp_path_factory.mktemp(request.param) / "run"
    alone(getattr(attention_splits, request.param), run_dir)
    return request.param, run_dir


def key_bias(name: str) -> Iterator[tuple[str, slice]]:
    """Where the key bias is, as (tensor, its rows)."""
    if name == "packed":
        yield "backbone.attention.attention.in_proj_bias", slice(16, 32)
    else:
        yield "backbone.attention.key.bias", slice(0, 16)


@pytest.mark.parametrize(
    ("processes", "micro_batch_size"), [(1, 16), (1, 4), (1, 2), (2, 16), pytest.param(2, 4, marks=pytest.mark.long)]
)
def test_splits_agree_to_rounding_but_for_the_key_bias(
    whole: tuple[str, Path], tmp_path: Path, processes: int, micro_batch_size: int
) -> None:
    name, reference = whole
    if processes == 1:
        alone(getattr(attention_splits, name), tmp_path, micro_batch_size=micro_batch_size)
    else:
        words = ("--run-dir", str(tmp_path), "--micro-batch", str(micro_batch_size), "--workers", "0")
        done = start("torchrun", *words, recipe=f"tests/support/attention_splits.py:{name}")
        assert done.returncode == 0, done.stderr
    way = sum(row["lr"] for row in rows(reference) if row["event"] == "step")  # type: ignore[comparison-overlap, misc]
    ours, theirs = last_model(reference), last_model(tmp_path)
    differ = {key: (ours[key] - theirs[key]).abs() > SHARE_OF_THE_WAY * way for key in ours}
    ((tensor, keys),) = key_bias(name)
    assert {key for key, over in differ.items() if over.any()} == {tensor}
    over = differ[tensor]
    assert over[keys].any()
    assert over.sum() == over[keys].sum(), "values beside the key bias"
    assert (ours[tensor] - theirs[tensor]).abs().max() <= 2 * way


def test_the_comparison_finds_it_by_the_size_of_its_gradient(whole: tuple[str, Path], tmp_path: Path) -> None:
    name, reference = whole
    alone(getattr(attention_splits, name), tmp_path / "split", micro_batch_size=4)
    found = compare(reference, tmp_path / "split", getattr(attention_splits, name))
    ((tensor, _),) = key_bias(name)
    assert found.broken == []
    assert [difference.tensor for difference in found.noise] == [tensor]
    assert found.noise[0].over_tolerance <= 16


def test_a_difference_in_a_sound_gradient_is_no_noise(whole: tuple[str, Path], tmp_path: Path) -> None:
    """The steps of the other run are longer by a hundredth: all that trains differs."""
    name, reference = whole
    recipe = getattr(attention_splits, name)
    longer = dataclasses.replace(recipe, optim=optim.AdamW(lr=1.01 * attention_splits.LR, eps=1e-12))
    alone(longer, tmp_path)
    broken = {difference.tensor for difference in compare(reference, tmp_path, recipe).broken}
    assert {"head.weight", "backbone.patches.weight", "backbone.mlp.0.weight", "backbone.norm1.bias"} <= broken


@pytest.mark.long
def test_verify_names_it_and_says_why(run_cli: RunCli) -> None:
    done = run_cli(
        "verify", str(SUPPORT / "attention_splits.py:packed"), "--processes", "1", env=PATHS | {"COLUMNS": "300"}
    )
    assert done.code == 0, done.out + done.err
    (line,) = [line for line in done.out.splitlines() if line.startswith("parity: 1 process --micro-batch 16")]
    assert "holds" in line
    why = "over 1e-05 where the gradient is rounding noise, which Adam scales up: "
    assert f"{why}backbone.attention.attention.in_proj_bias (" in line
    assert line.count("backbone.") <= 2, "named as the largest difference and as noise, and no other"


def rows(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def last_model(run_dir: Path) -> dict[str, torch.Tensor]:
    checkpoints = Checkpoints(run_dir / "checkpoints")
    newest = checkpoints.newest()
    assert newest is not None
    return checkpoints.load(newest).model
