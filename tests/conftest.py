"""What every test starts from, and must leave behind."""

from __future__ import annotations

import atexit
import gc
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

import pytest

from commands import CliResult, RunCli, run_python
from disks import small_disk
from process_starts import started_processes
from process_state import forget_processes

# A shell that starts the suite in the background (pytest &, nohup) has it ignore SIGINT, which all processes that it
# starts inherit: those that are interrupted by a test would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The tests start several processes on the same cores, and threads that wait actively take them from those that work:
# with two busy processes on two cores a training step took 3 to 5 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
THREADS = int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))
# Stored features are shared by all runs of a user; the tests have a folder of their own.
os.environ["LAUNCHER_CACHE"] = tempfile.mkdtemp(prefix="launcher-tests-cache-")
atexit.register(shutil.rmtree, os.environ["LAUNCHER_CACHE"], ignore_errors=True)

# By pytest, by scikit-learn on import, and by torch when it first compiles or asks whether it could.
SET_BY_LIBRARIES = {
    "PYTEST_CURRENT_TEST",
    "PYTEST_XDIST_TESTRUNUID",
    "KMP_DUPLICATE_LIB_OK",
    "LD_LIBRARY_PATH",
    "TORCHINDUCTOR_CACHE_DIR",
    "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
}


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Side by side (pytest -n), tests of a file stay in one process, for they share runs that were trained once; those
    on Slurm stay together, for they share a cluster."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "slurm" if nodeid.startswith("tests/slurm/") else str(super()._split_scope(nodeid))

    return ByFile(config, log)


MARKERS_BY_FIXTURE = {
    "run_cli": ("slow",),
    "slurm": ("slurm", "long"),
    "stories": ("slurm", "long"),
    "browser": ("browser", "slow"),
}
STARTED = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)  # before pytest selects by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the fixtures that they use; `fast` is what is neither `slow` nor `long`."""
    for item in items:
        for fixture, markers in MARKERS_BY_FIXTURE.items():
            if fixture in getattr(item, "fixturenames", ()):
                for marker in markers:
                    item.add_marker(marker)
        if not any(map(item.get_closest_marker, ("slow", "long"))):
            item.add_marker("fast")


def pytest_collection_finish() -> None:
    """Keep what is imported by now out of the garbage collector: a run collects in each phase, and went through all of
    torch and of the tests each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[STARTED] = started_processes()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Fail a test that is not marked as slow, but starts processes."""
    yield
    started = started_processes() - item.stash[STARTED]
    if started and item.get_closest_marker("fast"):
        pytest.fail(f"starts processes ({started}) and must be marked: @pytest.mark.slow")


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Each test begins without a process group and without what Accelerate keeps between Accelerators; one that leaves
    an environment variable or a setting of torch behind fails, for the next test would run in another world."""
    before, settings = dict(os.environ), _settings_of_torch()
    _seed()
    yield
    forget_processes()
    left = _set_torch_back(settings)
    after = dict(os.environ)
    os.environ.clear()
    os.environ.update(before)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} - SET_BY_LIBRARIES
    assert not changed, f"the test changed environment variables and did not set them back: {sorted(changed)}"
    assert not left, f"the test changed settings of torch and did not set them back: {left}"


def _seed() -> None:
    """Let what a test draws be the same in each run of it."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def _settings_of_torch() -> dict[str, object]:
    """What a process of torch computes by; sums by another number of threads differ in their last bits."""
    if "torch" not in sys.modules:
        return {}
    import torch

    return {
        "num_threads": torch.get_num_threads(),
        "default_dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "grad_enabled": torch.is_grad_enabled(),
    }


def _set_torch_back(before: dict[str, object]) -> dict[str, object]:
    """What of it is other than before (a test that imports torch begins without a word on it: one per core)."""
    if "torch" not in sys.modules:
        return {}
    import torch

    after = _settings_of_torch()
    before = before or after | {"num_threads": THREADS, "deterministic": False, "grad_enabled": True}
    torch.set_num_threads(before["num_threads"])  # type: ignore[arg-type]
    torch.set_default_dtype(before["default_dtype"])  # type: ignore[arg-type]
    torch.use_deterministic_algorithms(bool(before["deterministic"]))
    torch.set_float32_matmul_precision(before["matmul_precision"])  # type: ignore[arg-type]
    torch.set_grad_enabled(bool(before["grad_enabled"]))
    return {name: value for name, value in after.items() if value != before[name]}


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder of a file system that has room for 8 kB."""
    with small_disk(tmp_path / "disk", "8k") as disk:
        yield disk


@pytest.fixture
def run_cli(tmp_path: Path) -> RunCli:
    """`run_cli("plan", "x.py", cwd=..., env={...})` runs `python -m launcher plan x.py` in a process of its own, in
    `tmp_path` unless told otherwise, with the launcher of this checkout."""

    def run(*arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> CliResult:
        return run_python("-m", "launcher", *arguments, cwd=cwd or tmp_path, env=env)

    return run
