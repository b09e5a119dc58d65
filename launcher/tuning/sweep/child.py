"""Training run of a trial, in a process of its own: whatever happens to it, the worker goes on."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.files import metrics_from_json
from launcher.training.launch import PARENT_VARIABLE
from launcher.training.stop_request import ask_to_stop

OUTPUT = "output.txt"
"""File in the run dir of a trial with the output of its process, in all its starts."""


class Child:
    """Run that was started."""

    def __init__(self, words: Sequence[str], run_dir: Path, processes: int) -> None:
        self.run_dir, self.processes = run_dir, processes
        self._output = run_dir / OUTPUT
        self._begin = self._output.stat().st_size if self._output.exists() else 0
        head = [sys.executable, "-m"]
        if processes > 1:
            head += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
        with self._output.open("ab") as output:
            # In a session of its own, because Ctrl-C is meant for the worker, which asks the run to stop.
            self._process = subprocess.Popen(  # noqa: S603 - words of our own making, no shell
                [*head, "launcher", "train", *words, "--no-report", "--run-dir", str(run_dir)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {PARENT_VARIABLE: str(os.getpid())},
                start_new_session=True,
            )
        self._asked = False

    def code(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """Ask the run to save and stop.

        Call it again until the run has ended: a run that is just starting deletes the file that asks.
        """
        ask_to_stop(self.run_dir, "preempted")
        if self.processes == 1 and not self._asked:  # a launcher would die of the signal before its processes save
            self._process.terminate()
        self._asked = True

    def kill(self) -> None:
        """Kill the run and the processes that it started, and wait for its end."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def output(self) -> str:
        """Return the output of this start."""
        with self._output.open("rb") as file:
            file.seek(self._begin)
            return file.read().decode("utf-8", "replace")

    def cause(self) -> str:
        """Return why the run failed, on one line."""
        code = self._process.returncode
        lines = [line.strip() for line in self.output().splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if errors:
            return "; ".join(dict.fromkeys(errors))
        if code < 0:
            name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
            return f"killed by {name}{' (too little memory?)' if name == 'SIGKILL' else ''}"
        return f"exit code {code}: {lines[-1] if lines else 'it has said nothing'}"


class Epochs:
    """Validation metric of each epoch of a run, as recorded in its metrics.jsonl."""

    def __init__(self, run_dir: Path, metric: str) -> None:
        self._path, self._metric = run_dir / "metrics.jsonl", metric
        self._at = self._count = 0

    def new(self) -> Iterator[tuple[int, float]]:
        """Yield (epochs of the run so far, value) for the epochs that were recorded since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                content = file.read()
        except OSError:
            return
        rows = content[: content.rfind(b"\n") + 1]  # the last row may be half written
        self._at += len(rows)
        for line in rows.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if row.get("event") == "epoch":
                self._count += 1
                metrics = metrics_from_json(row["val"])
                plain = metrics.get(self._metric, math.nan)
                yield self._count, metrics.get(f"ema_{self._metric}", plain)


def final_value(run_dir: Path, metric: str) -> float | None:
    """Return the metric of a finished run, NaN if it is not defined there, or None if the run is not finished."""
    try:
        value = json.loads((run_dir / "final/metrics.json").read_text(encoding="utf-8")).get(metric)
    except OSError:
        return None
    return math.nan if value is None else float(value)


def why_stopped(run_dir: Path) -> str | None:
    """Return the reason in a run's own marker, or None for a run that has not stopped."""
    try:
        return str(json.loads((run_dir / "STOPPED.json").read_text())["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
