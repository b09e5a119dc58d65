"""The command `verify`: the promises, checked on a user's own recipe on this machine."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from launcher.console import show_table
from launcher.inference.run_records import read_rows
from launcher.recipe.abilities import HasDropout
from launcher.recipe.loading import LoadedRecipe
from launcher.recipe.serialization import to_json
from launcher.text import plural
from launcher.verify.kills import launch_command, run_until_killed
from launcher.verify.weight_equality import TOLERANCE, Comparison, compare, furthest

EQUAL = "weights and metrics.jsonl equal to the bit"
NAMED = 5
"""The most tensors that a line of the table names; the others are counted."""

RECIPE = """import json
from launcher.recipe.serialization import from_json
from launcher.recipe.loading import types_of
from launcher.verify.short_recipe import shortened

own = types_of({spec!r})  # parts of the user's own; their folder goes to sys.path
recipe = shortened(from_json(json.loads({recipe!r}), own), {steps})
"""


@dataclasses.dataclass(frozen=True)
class Check:
    """A promise, checked on a recipe, or an act of a rehearsal."""

    name: str
    holds: bool
    outcome: str


def verify(
    loaded: LoadedRecipe, *, processes: Sequence[int], steps: int, workers: int | None, report: Callable[[str], None]
) -> bool:
    """Train a shortened recipe with the batch divided in several ways, kill one run and resume it, and compare.

    Print the table of checks, and return whether all promises hold.
    """
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        checks = Verification(loaded, Path(folder), list(processes), steps, report, workers).checks()
    return show(checks, Console(highlight=False))


class Verification:
    """The runs of one `verify`, in one folder."""

    def __init__(
        self,
        loaded: LoadedRecipe,
        folder: Path,
        processes: list[int],
        steps: int,
        report: Callable[[str], None],
        workers: int | None = None,
    ) -> None:
        self.loaded, self.folder, self.processes, self.steps, self.report = loaded, folder, processes, steps, report
        self.workers = workers
        self.recipe = folder / "recipe_to_verify.py"
        text = json.dumps(to_json(loaded.recipe))
        spec = f"{loaded.path}:{loaded.variable}"
        self.recipe.write_text(RECIPE.format(spec=spec, recipe=text, steps=steps), encoding="utf-8")

    def checks(self) -> list[Check]:
        """Run all checks, or only the first training if it fails."""
        first = self.run("reference", self.processes[0])
        if first is not None:
            return [Check("the recipe trains", False, first)]
        parity = [self.parity(count) for count in self.processes[1:]]
        share = self.loaded.recipe.batch_size // self.processes[0]
        if share % 2 == 0:
            parity.append(self.parity(self.processes[0], "--micro-batch", str(share // 2)))
        return [*parity, self.resume(), self.frozen(), self.samples()]

    def run(self, name: str, processes: int, *words: str) -> str | None:
        """Train, and return None, or the errors of a run that failed."""
        self.report(
            f"training {plural(self.steps, 'step', spec='')} a phase on {plural(processes, 'process', 'processes')} "
            f"{' '.join(words)}".rstrip()
        )
        command = self.command(name, processes, *words)
        begin = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
        self.report(f"  {time.monotonic() - begin:.0f} s")
        if done.returncode == 0:
            return None
        errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        return "; ".join(errors) or (done.stderr.strip().splitlines() or ["no output"])[-1]

    def command(self, name: str, processes: int, *words: str) -> list[str]:
        """Return the command that trains the run `name`."""
        workers = [] if self.workers is None else ["--workers", str(self.workers)]
        return launch_command(str(self.recipe), self.folder / name, *words, *workers, processes=processes)

    def parity(self, processes: int, *words: str) -> Check:
        """Check that another division of the batch leads to the weights of the reference run."""
        promise = f"parity: {plural(processes, 'process', 'processes')}{' ' + ' '.join(words) if words else ''}"
        name = f"split-{processes}-{len(words)}"
        failed = self.run(name, processes, *words)
        if failed is not None:
            return Check(promise, False, failed)
        comparison = compare(self.folder / "reference", self.folder / name, self.loaded.recipe)
        text = in_words(comparison)
        if comparison.broken and self.why():
            text += f"; {self.why()}"
        return Check(promise, not comparison.broken, text)

    def resume(self) -> Check:
        """Check that a run which was killed and started again equals the reference run to the bit."""
        promise = "exact resume: kill -9, and the same command again"
        self.report("training, killing it, and starting it again")
        processes = self.processes[0]
        command = self.command("killed", processes)
        steps = self.steps * len(self.loaded.recipe.freeze_plan)
        at = random.randint(1, max(1, steps - 1))  # noqa: S311 - any step will do
        killed = run_until_killed(command, self.folder / "killed", at_step=at, log=self.folder / "killed.txt")
        failed = self.run("killed", processes)
        if failed is not None:
            return Check(promise, False, failed)
        if difference := self.difference_of("killed"):
            return Check(promise, False, f"{difference}, killed at step {at} of {steps}")
        when = f"killed at step {at} of {steps}" if killed else "it had ended before it could be killed"
        return Check(promise, killed, f"{EQUAL}, {when}")

    def difference_of(self, name: str) -> str:
        """Say how the result of the run `name` differs from that of the reference run, or return an empty string."""
        tensor, difference = furthest(self.folder / "reference", self.folder / name)
        if difference:
            return f"{tensor} differs by {difference:.1e}"
        same_rows = self.file("reference", "metrics.jsonl") == self.file(name, "metrics.jsonl")
        return "" if same_rows else "metrics.jsonl differs"

    def frozen(self) -> Check:
        """Report that frozen tensors stayed the same and processes agreed, as each run has proved by itself."""
        # A run whose frozen tensors move or whose processes disagree stops with an error, and these came to their end.
        # A save, and with it a proof, follows each step; after the last step of an epoch it follows the evaluation.
        saves = sum(row["event"] == "step" for row in self.rows())
        return Check(
            "frozen is still, processes agree",
            True,
            f"proven by hashes at {plural(saves, 'moment', spec='')} of each run",
        )

    def samples(self) -> Check:
        """Check that the reference run took every sample once in each phase's single epoch."""
        promise = "every sample once an epoch"
        taken: Counter[str] = Counter()
        for row in self.rows():
            if row["event"] == "step":
                taken[row["phase"]] += row["samples"]
        total = json.loads(self.file("reference", "environment.json"))["data"]["train_samples"]
        holds = all(count == total for count in taken.values())
        return Check(promise, holds, ", ".join(f"{phase}: {count} of {total}" for phase, count in taken.items()))

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the reference run's metrics.jsonl."""
        return read_rows(self.folder / "reference" / "metrics.jsonl")

    def file(self, run: str, name: str) -> bytes:
        """Return the content of a file in the run dir of `run`."""
        return (self.folder / run / name).read_bytes()

    def why(self) -> str:
        """Name the recipe's setting by which divisions of the batch may differ, or return an empty string."""
        if any(phase.norm_statistics == "update" for phase in self.loaded.recipe.freeze_plan):
            return "norm_statistics='update' makes splits differ"
        if isinstance(self.loaded.recipe.head, HasDropout) and self.loaded.recipe.head.dropout:
            return "dropout makes splits differ"
        if self.loaded.recipe.mixed_precision != "no":
            return f"{self.loaded.recipe.mixed_precision} rounds more coarsely; try verify with mixed_precision=no"
        return ""


def in_words(comparison: Comparison) -> str:
    """Describe in words how two divisions of the batch differ."""
    first = comparison.differences[0]
    if not first.largest:
        return "equal to the bit"
    text = f"largest difference {first.largest:.1e} in {first.tensor}"
    if comparison.broken:
        worst = max(comparison.broken, key=lambda difference: difference.largest)
        others = len(comparison.broken) - 1
        unnamed = f", and {plural(others, 'tensor', spec='')} more" if others else ""
        return f"{text}; rounding does not explain {worst.tensor}{unnamed}"
    if comparison.noise:
        named = [f"{noisy.tensor} ({noisy.over_tolerance:,} of {noisy.values:,})" for noisy in comparison.noise[:NAMED]]
        others = len(comparison.noise) - len(named)
        unnamed = f" and {plural(others, 'tensor', spec='')} more" if others else ""
        text += f"; over {TOLERANCE:.0e} where the gradient is rounding noise, which Adam scales up: "
        text += f"{', '.join(named)}{unnamed}"
    return text


def show(
    checks: Sequence[Check], console: Console, *, title: str = "promise", good: str = "holds", bad: str = "BROKEN"
) -> bool:
    """Print the table of checks, and return whether all promises hold."""
    rows = [[check.name, good if check.holds else bad, check.outcome] for check in checks]
    show_table([[title, "", "found"], *rows], console, left=range(3))
    return all(check.holds for check in checks)
