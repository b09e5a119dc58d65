"""What befalls a run from outside is one line with the cure, and the same command goes on."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import PIL.Image
import pytest
import torch

import tiny
from commands import ROOT, SUPPORT
from launcher import Split, Splits, heads, optim, phases
from launcher.errors import UserError
from launcher.recipe.overrides import apply_overrides
from launcher.recipe.protocols import TargetKind
from launcher.training import images
from launcher.training import run as run_module
from launcher.training.batch_arithmetic import batching_for
from runs import train


@dataclasses.dataclass(frozen=True)
class Failing(tiny.Stripes):
    """Images of which one cannot be had in a data worker, in one way or another."""

    fault: str = ""

    def read(self, index: int) -> Any:
        if self.fault.startswith("/"):
            shutil.rmtree(self.fault, ignore_errors=True)
        if index == 5 and torch.utils.data.get_worker_info() is not None:
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "damaged":
                raise UserError("/copies/pets: the prepared copy is damaged (train.*); prepare it again")
            if self.fault == "unreadable":
                raise PermissionError(13, "Permission denied", "/pets/5.png")
            if self.fault == "bug":
                return self.no_such_field  # type: ignore[attr-defined]
            raise MemoryError
        return super().read(index)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailingData(tiny.StripeData):
    fault: str

    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        splits = super().build(target_kind, seed)
        return dataclasses.replace(splits, train=Split(Failing(self.train, 0, self.fault), splits.train.targets))


@dataclasses.dataclass(frozen=True)
class Grey(tiny.Stripes):
    def read(self, index: int) -> Any:
        return PIL.Image.new("RGB", (16, 16), (90, 90, 90))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant(tiny.StripeData):
    """Images that are all the same."""

    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        splits = super().build(target_kind, seed)
        return dataclasses.replace(splits, train=Split(Grey(self.train, 0), splits.train.targets))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (
            "killed",
            r"a data worker \(process \d+\) was killed( \(Killed\))?, as happens where memory runs out; give the ",
        ),
        ("damaged", r"/copies/pets: the prepared copy is damaged \(train\.\*\); prepare it again"),
        ("unreadable", r"data: stripes/0/5: cannot be read \(Permission denied\)"),
        ("bug", r"data: stripes/0/5: AttributeError: .*no_such_field.* \(at .*test_surroundings\.py:\d+\)"),
        ("memory", r"data: stripes/0/5: memory ran out; use fewer --workers, or give the run more memory"),
    ],
)
def test_what_goes_wrong_in_a_data_worker_is_one_line(tmp_path: Path, fault: str, line: str) -> None:
    recipe = dataclasses.replace(
        tiny.recipe, data=FailingData(fault=fault), freeze_plan=phases.full_finetune(epochs=1), cache="off"
    )
    with pytest.raises(UserError, match=f"^{line}") as error:
        train(recipe, tmp_path / "run", num_workers=1)
    assert len(error.value.problems) == 1
    assert "Traceback" not in str(error.value)
    assert str(error.value).endswith("; then the same command begins again")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dies", "line"),
    [
        (True, r"a data worker \(process \d+\) was killed( \(Killed\))?, as happens where memory runs out; give the "),
        (False, r"a data worker broke off while it handed over a batch \(ConnectionResetError\), as happens where "),
    ],
)
def test_a_data_worker_that_is_killed_while_it_hands_over_a_batch_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dies: bool, line: str
) -> None:
    """The connection may end before the system reports the death."""

    def detach(_: object) -> int:
        for worker in multiprocessing.active_children() if dies else ():
            threading.Timer(0.3, worker.kill).start()
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    monkeypatch.setattr("multiprocessing.resource_sharer.DupFd.detach", detach)
    monkeypatch.setattr(images, "SECONDS_UNTIL_A_DEATH_IS_KNOWN", 60.0 if dies else 0.1)
    recipe = dataclasses.replace(tiny.recipe, freeze_plan=phases.full_finetune(epochs=1), cache="off")
    with pytest.raises(UserError, match=f"^{line}") as error:
        train(recipe, tmp_path / "run", num_workers=1)
    assert len(error.value.problems) == 1


def test_all_is_closed_whatever_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch raises in the main thread, wherever that is, where a data worker was killed."""
    closed: list[str] = []

    def closing(name: str) -> Callable[[], None]:
        def close() -> None:
            closed.append(name)
            raise (RuntimeError if name in ("writer", "lock") else OSError)(name)

        return close

    monkeypatch.setattr(run_module, "end_workers", closed.append)
    run = SimpleNamespace(
        writer=SimpleNamespace(join=closing("writer")),
        metrics=SimpleNamespace(close=closing("metrics")),
        lock=SimpleNamespace(release=closing("lock")),
        screen=SimpleNamespace(close=closing("screen")),
        train_loader="training",
        val_loader="validation",
    )
    with pytest.raises(RuntimeError):
        run_module.Run.close(run)  # type: ignore[arg-type]
    assert closed == ["writer", "metrics", "lock", "screen", "training", "validation"]


def test_a_run_dir_that_is_removed_in_mid_run_is_reported(tmp_path: Path) -> None:
    data = FailingData(fault=str(tmp_path / "run"))
    recipe = dataclasses.replace(
        tiny.recipe, data=data, freeze_plan=phases.full_finetune(epochs=1), cache="off", checkpoint_every_steps=1
    )
    with pytest.raises(UserError, match=r"run: the run dir is gone; it was removed or renamed") as error:
        train(recipe, tmp_path / "run", num_workers=0)
    assert len(error.value.problems) == 1


@pytest.mark.slow
def test_a_small_shared_memory_and_few_open_files_are_reported_before_training(tmp_path: Path) -> None:
    """1 MB of shared memory, in a mount namespace of its own, and a hard limit of 40 files."""
    script = tmp_path / "start.sh"
    words = "batch_size=1200 data.train=2400 --workers 4 --micro-batch 1200"
    command = f"{sys.executable} -m launcher {ROOT / 'tests/support/tiny.py'} {words}"
    script.write_text(f"mount -t tmpfs -o size=1m tmpfs /dev/shm && ulimit -n 40 && exec {command}")
    tried = subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True)
    if tried.returncode:
        pytest.skip("needs the right to mount")
    done = subprocess.run(
        ["unshare", "-m", "bash", str(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    memory, files = (line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert re.match(r"error: /dev/shm: 1\.0 MB are free, and 4 data workers need \S+ MB to hand .*--shm-size", memory)
    assert re.match(r"error: ulimit -n: 40 files may be open, and 4 data workers need \d+; raise the limit", files)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_shared_memory_that_is_full_in_mid_run_is_one_line(tmp_path: Path) -> None:
    """It was large enough when it was looked at; other programs fill it, too."""
    overrides = ["batch_size=1200", "data.train=2400", "cache=off"]
    words = [str(SUPPORT / "tiny.py"), *overrides, "--workers", "1", "--micro-batch", "1200"]
    program = tmp_path / "start.py"
    program.write_text(
        "import sys\nfrom launcher.cli import main\nfrom launcher.training import setup\n"
        f"setup.check_handover = lambda *_: None\nsys.exit(main({words!r}))\n"
    )
    tried = subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True)
    if tried.returncode:
        pytest.skip("needs the right to mount")
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", f"mount -t tmpfs -o size=1m tmpfs /dev/shm && exec {sys.executable} start.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
        timeout=200,  # a batch that cannot be handed over must not be waited for
    )
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"error: /dev/shm is full, .*--shm-size.*; then the same command begins again\n", done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"head": heads.Linear(init="ridge"), "data": Constant()}, "head.init='ridge': the backbone's features of the"),
        ({"backbone": tiny.TinyBackbone(width=-1)}, r"backbone: \w+: .* \(at .*tiny\.py:\d+\)"),
        ({"optim": optim.SGD(lr=1e38, lr_batch_size=1)}, r"freeze_plan\.0: a learning rate of 3\.2e\+39 \(optim\.lr "),
    ],
)
def test_parts_that_cannot_do_their_work_say_so(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=f"^{line}"):
        train(dataclasses.replace(tiny.recipe, **changes), tmp_path / "run", num_workers=0)


@pytest.mark.parametrize(
    "override",
    ["seed=9223372036854775808", "batch_size=2147483648", "freeze_plan.0.epochs=1000000000", "clip_norm=1e31"],
)
def test_values_beyond_their_limits_are_refused(override: str) -> None:
    with pytest.raises(UserError, match=r"^[\w.]+=\S+: input should be less than"):
        apply_overrides(tiny.recipe, [override])


def test_the_largest_batch_is_shared_out_at_once() -> None:
    size = 2**31 - 1  # a prime
    assert batching_for(size, 1, None).accumulation_steps == size
    with pytest.raises(UserError, match="1, 2147483647 would work"):
        batching_for(size, 1, 2)
