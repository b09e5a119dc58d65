"""Six splits of one batch into processes x micro-batch x accumulation give the weights of the seventh."""

from __future__ import annotations

from pathlib import Path

import pytest

import parity_recipes
from processes import alone, furthest, start, steps

LONG = pytest.mark.long
NAMES = ("layer_norm", "resnet")


@pytest.fixture(scope="module", params=NAMES)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    run_dir = tmp_path_factory.mktemp(request.param) / "run"
    alone(getattr(parity_recipes, request.param), run_dir)
    return request.param, run_dir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "micro_batch_size"),
    [(1, 16), (1, 8), (1, 2), (2, 16), pytest.param(2, 8, marks=LONG), pytest.param(2, 2, marks=LONG)],
)
def test_the_split_does_not_change_the_weights(
    whole: tuple[str, Path], tmp_path: Path, processes: int, micro_batch_size: int
) -> None:
    name, reference = whole
    if processes == 1:
        alone(getattr(parity_recipes, name), tmp_path, micro_batch_size=micro_batch_size)
    else:
        words = ("--run-dir", str(tmp_path), "--micro-batch", str(micro_batch_size), "--workers", "0")
        done = start("torchrun", *words, recipe=f"tests/support/parity_recipes.py:{name}")
        assert done.returncode == 0, done.stderr
    assert furthest(reference, tmp_path) < 1e-5
    assert steps(tmp_path) == steps(reference)
