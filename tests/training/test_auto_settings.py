"""The fastest settings by themselves: precision and memory format measured once and kept; a compiled network under
its own names."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from launcher.training import auto_settings, loop
from process_state import forget_processes
from runs import train


def seconds_of(precisions: dict[str, float]) -> Callable[..., dict[tuple[str, str], float]]:
    return lambda *_: {(name, "channels_last"): seconds for name, seconds in precisions.items()}


def log(run_dir: Path) -> str:
    return (run_dir / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("faster", ["no", "bf16"])
def test_the_faster_precision_is_taken_recorded_and_kept(
    faster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(tiny.recipe, mixed_precision="auto", final_weights="last")
    with monkeypatch.context() as patched:
        patched.setattr(auto_settings, "measure", seconds_of({"no": 1.0, "bf16": 2.0} | {faster: 0.5}))
        train(recipe, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "precision.json").read_text())["mixed_precision"] == faster
    assert f"cpu, mixed_precision={faster}, " in log(tmp_path / "run")
    # It does what the precision by its name does.
    forget_processes()
    train(dataclasses.replace(recipe, mixed_precision=faster), tmp_path / "named")  # type: ignore[arg-type]
    ours, theirs = (load_file(tmp_path / run / "final" / "model.safetensors") for run in ("run", "named"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    # Continued where the other one would be faster: it stays.
    forget_processes()
    shutil.rmtree(tmp_path / "run" / "final")
    monkeypatch.setattr(auto_settings, "measure", lambda *_: pytest.fail("measured again"))
    train(recipe, tmp_path / "run")
    assert log(tmp_path / "run").count(f"mixed_precision={faster}, ") == 2


@pytest.mark.slow
def test_both_precisions_are_measured(tmp_path: Path) -> None:
    train(dataclasses.replace(tiny.recipe, mixed_precision="auto"), tmp_path)
    recorded = json.loads((tmp_path / "precision.json").read_text())
    seconds = recorded["seconds_of_a_micro_step"]
    assert set(seconds) == {"no", "bf16"}
    assert recorded["mixed_precision"] == min(seconds, key=seconds.__getitem__)


@pytest.mark.slow
@pytest.mark.parametrize("faster", ["channels_last", "contiguous"])
def test_the_faster_memory_format_is_taken_recorded_and_kept(
    faster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    recipe = dataclasses.replace(tiny.parity, memory_format="auto")
    with monkeypatch.context() as patched:

        def measure(*_: object) -> dict[tuple[str, str], float]:
            seen.clear()  # what was tried before it was chosen
            return {("no", name): 1.0 - (name == faster) / 2 for name in auto_settings.MEMORY_FORMATS}

        patched.setattr(auto_settings, "measure", measure)
        patched.setattr(torch.nn.Conv2d, "_conv_forward", recorded(seen))
        train(recipe, tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "precision.json").read_text())
    assert (kept["memory_format"], kept["mixed_precision"]) == (faster, "no")
    assert f"memory_format=auto: {faster} (a micro-step takes: channels_last " in log(tmp_path / "run")
    assert seen
    assert set(seen) == {faster == "channels_last"}

    # It does what the format by its name does, and rounding apart what the other one does.
    named = {}
    for name in auto_settings.MEMORY_FORMATS:
        forget_processes()
        train(dataclasses.replace(recipe, memory_format=name), tmp_path / name)  # type: ignore[arg-type]
        named[name] = load_file(tmp_path / name / "final" / "model.safetensors")
    ours = load_file(tmp_path / "run" / "final" / "model.safetensors")
    assert all(torch.equal(ours[name], tensor) for name, tensor in named[faster].items())
    one, other = named.values()
    assert max(float((one[name].double() - other[name].double()).abs().max()) for name in one) < 1e-5

    # Continued where the other one would be faster: it stays.
    forget_processes()
    shutil.rmtree(tmp_path / "run" / "final")
    monkeypatch.setattr(auto_settings, "measure", lambda *_: pytest.fail("measured again"))
    train(recipe, tmp_path / "run")


def recorded(seen: list[bool]) -> Callable[..., torch.Tensor]:
    """Convolves; of inputs with more than one layout to choose from, notes whether they have channels last."""
    convolve = torch.nn.Conv2d._conv_forward

    def conv_forward(
        self: torch.nn.Conv2d, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        if torch.is_grad_enabled() and min(images.shape[1:]) > 1:
            seen.append(images.is_contiguous(memory_format=torch.channels_last))
        return convolve(self, images, weight, bias)

    return conv_forward


@pytest.mark.slow
def test_precision_and_memory_format_are_measured_together(tmp_path: Path) -> None:
    train(dataclasses.replace(tiny.recipe, mixed_precision="auto", memory_format="auto"), tmp_path)
    recorded = json.loads((tmp_path / "precision.json").read_text())
    seconds = recorded["seconds_of_a_micro_step"]
    assert set(seconds) == {
        f"{precision} {name}" for precision in ("no", "bf16") for name in auto_settings.MEMORY_FORMATS
    }
    assert f"{recorded['mixed_precision']} {recorded['memory_format']}" == min(seconds, key=seconds.__getitem__)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("on_nonfinite", "clip_norm", "asked"), [("stop", None, 0), ("stop", 1.0, 0), ("skip", None, 1)]
)
def test_a_step_asks_nothing_of_the_device(
    on_nonfinite: str, clip_norm: float | None, asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU each question would wait until all that was given to it is done. Losses are read for ten steps at
    once."""
    counts: list[int] = []
    step = loop.train_step

    def train_step(run: Any, state: Any, batches: Iterator[Any], number: int) -> None:
        batch = next(batches)  # loading is not the device's
        with Questions() as questions:
            step(run, state, iter([batch]), number)
        counts.append(questions.count)

    monkeypatch.setattr(loop, "train_step", train_step)
    recipe = dataclasses.replace(tiny.parity, on_nonfinite=on_nonfinite, clip_norm=clip_norm, ema_decay=0.9)  # type: ignore[arg-type]
    train(recipe, tmp_path)
    assert counts == [asked] * len(counts)
    assert len(counts) > 8


class Questions(TorchDispatchMode):
    """Counts the operations that bring a value from a device to Python."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        asks = ("_local_scalar_dense", "equal", "nonzero", "is_nonzero", "masked_select")
        self.count += func.overloadpacket.__name__ in asks
        return func(*args, **(kwargs or {}))


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
def test_a_compiled_network_learns_the_same_under_its_own_names(tmp_path: Path) -> None:
    rules = (("head", 1.0), ("backbone.block2", 0.5), ("backbone", 0.0))
    partly = dataclasses.replace(tiny.recipe.freeze_plan[0], name="partly", rules=rules)
    recipe = dataclasses.replace(tiny.parity, freeze_plan=(partly, *tiny.recipe.freeze_plan[1:]))
    train(recipe, tmp_path / "eager")
    train(dataclasses.replace(recipe, compile=True), tmp_path / "compiled")
    ours, theirs = (load_file(tmp_path / run / "final" / "model.safetensors") for run in ("compiled", "eager"))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in theirs) < 1e-5
