"""The command `rehearse`: a cluster job, played on this machine: warned, started again, killed, started again."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from launcher.console import show_table
from launcher.recipe.loading import LoadedRecipe
from launcher.training.attempt import newest_step
from launcher.training.stop import MARKER
from launcher.training.stop_request import ask_to_stop
from launcher.verify.kills import run_until_killed
from launcher.verify.verify import Verification
from launcher.verify.weight_equality import furthest

POLL_SECONDS = 0.02


@dataclasses.dataclass(frozen=True)
class Act:
    """An act of the rehearsal, and whether it went as it should."""

    what: str
    went_well: bool
    found: str


class Rehearsal(Verification):
    """A shortened recipe, trained without a break and once more with all that a cluster does to a job."""

    def acts(self) -> list[Act]:
        """Play all acts, up to one that does not go as it should."""
        processes = self.processes[0]
        failed = self.run("reference", processes)
        if failed is not None:
            return [Act("the recipe trains", False, failed)]
        command = self.command("job", processes)
        steps = self.steps * len(self.loaded.recipe.freeze_plan)
        self.report("the same again, warned, started again, killed, started again")
        played = [self.warned(command, max(1, steps // 3)), self.killed(command, max(2, 2 * steps // 3))]
        if not all(act.went_well for act in played):
            return played
        failed = self.run("job", processes)
        return [*played, Act("started again, to the end", failed is None, failed or "finished"), *self.result(failed)]

    def warned(self, command: list[str], at_step: int) -> Act:
        """Ask the job to stop by the file STOP, as slurm/train.sbatch does before the time is up."""
        run_dir = self.folder / "job"
        with (self.folder / "job.txt").open("a") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)  # noqa: S603 - our own command
        asked = False
        while process.poll() is None:
            if not asked and newest_step(run_dir) >= at_step:
                ask_to_stop(run_dir, "time limit")
                asked = True
            time.sleep(POLL_SECONDS)
        what = "warned before the time is up: saves and stops"
        marker = run_dir / MARKER
        if not marker.exists():
            return Act(what, False, "it was at its end before it could be warned" if asked else "it failed")
        stopped = json.loads(marker.read_text())
        return Act(what, stopped["reason"] == "time limit", f"saved at step {stopped['step']} ({stopped['reason']})")

    def killed(self, command: list[str], at_step: int) -> Act:
        """Start the job again, and kill it once a checkpoint of `at_step` or later is there."""
        run_dir = self.folder / "job"
        killed = run_until_killed(command, run_dir, at_step=at_step, log=self.folder / "job.txt")
        found = f"killed after step {newest_step(run_dir)}" if killed else "it was at its end before"
        return Act("started again, then kill -9", killed, found)

    def result(self, failed: str | None) -> list[Act]:
        """Compare the job with the unbroken run, unless it failed."""
        if failed is not None:
            return []
        name, difference = furthest(self.folder / "reference", self.folder / "job")
        same_rows = self.file("reference", "metrics.jsonl") == self.file("job", "metrics.jsonl")
        found = "weights and metrics.jsonl equal to the bit"
        if difference or not same_rows:
            found = f"{name} differs by {difference:.1e}" if difference else "metrics.jsonl differs"
        return [Act("ends like the unbroken run", not difference and same_rows, found)]


def rehearse(
    loaded: LoadedRecipe, *, processes: int, steps: int, workers: int | None, report: Callable[[str], None]
) -> bool:
    """Play a cluster job with a shortened recipe, print the acts, and return whether all went well."""
    with tempfile.TemporaryDirectory(prefix="rehearse-") as folder:
        acts = Rehearsal(loaded, Path(folder), [processes], steps, report, workers).acts()
    return show(acts, Console(highlight=False))


def show(acts: list[Act], console: Console) -> bool:
    """Print the table of acts, and return whether all went well."""
    rows = [[act.what, "well" if act.went_well else "BADLY", act.found] for act in acts]
    show_table([["act", "", "found"], *rows], console, left=range(3))
    return all(act.went_well for act in acts)
