"""The command `rehearse`: a cluster job, played on this machine: warned, started again, killed, started again."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from launcher.recipe.loading import LoadedRecipe
from launcher.training.attempt import newest_step
from launcher.training.stop import MARKER
from launcher.training.stop_request import ask_to_stop
from launcher.verify.kills import run_until_killed
from launcher.verify.verify import EQUAL, Check, Verification
from launcher.verify.verify import show as show_checks

POLL_SECONDS = 0.02


class Rehearsal(Verification):
    """A shortened recipe, trained without a break and once more with all that a cluster does to a job."""

    def acts(self) -> list[Check]:
        """Play all acts, up to one that does not go as it should."""
        processes = self.processes[0]
        failed = self.run("reference", processes)
        if failed is not None:
            return [Check("the recipe trains", False, failed)]
        command = self.command("job", processes)
        steps = self.steps * len(self.loaded.recipe.freeze_plan)
        self.report("the same again, warned, started again, killed, started again")
        played = [self.warned(command, max(1, steps // 3)), self.killed(command, max(2, 2 * steps // 3))]
        if not all(act.holds for act in played):
            return played
        failed = self.run("job", processes)
        played.append(Check("started again, to the end", failed is None, failed or "finished"))
        return played if failed is not None else [*played, self.result()]

    def warned(self, command: list[str], at_step: int) -> Check:
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
        act = "warned before the time is up: saves and stops"
        marker = run_dir / MARKER
        if not marker.exists():
            return Check(act, False, "it was at its end before it could be warned" if asked else "it failed")
        stopped = json.loads(marker.read_text())
        return Check(act, stopped["reason"] == "time limit", f"saved at step {stopped['step']} ({stopped['reason']})")

    def killed(self, command: list[str], at_step: int) -> Check:
        """Start the job again, and kill it once a checkpoint of `at_step` or later is there."""
        run_dir = self.folder / "job"
        killed = run_until_killed(command, run_dir, at_step=at_step, log=self.folder / "job.txt")
        outcome = f"killed after step {newest_step(run_dir)}" if killed else "it was at its end before"
        return Check("started again, then kill -9", killed, outcome)

    def result(self) -> Check:
        """Compare the job with the unbroken run."""
        difference = self.difference_of("job")
        return Check("ends like the unbroken run", not difference, difference or EQUAL)


def rehearse(
    loaded: LoadedRecipe, *, processes: int, steps: int, workers: int | None, report: Callable[[str], None]
) -> bool:
    """Play a cluster job with a shortened recipe, print the acts, and return whether all went well."""
    with tempfile.TemporaryDirectory(prefix="rehearse-") as folder:
        acts = Rehearsal(loaded, Path(folder), [processes], steps, report, workers).acts()
    return show(acts, Console(highlight=False))


def show(acts: list[Check], console: Console) -> bool:
    """Print the table of acts, and return whether all went well."""
    return show_checks(acts, console, title="act", good="well", bad="BADLY")
