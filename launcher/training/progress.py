"""The screen of a run: live on a terminal, plain lines with timestamps in a file or under a scheduler."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import os
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from launcher.console import lost_output
from launcher.text import duration, plural
from launcher.text import number as measured
from launcher.training.preflight import Prepared, ResolvedPhase

PLAIN_EVERY_SECONDS = 30.0
"""Seconds between two lines about an epoch in progress in a log file."""
NARROW = 100
"""Columns of a terminal below which the bar and the learning rate are left out; many terminals are 80 wide."""


class Screen:
    """A printer to the terminal and to log.txt, which is silent except on the main process."""

    def __init__(self, *, speaks: bool, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.speaks = speaks
        # A batch job's output is read later in a file, even if the scheduler gives it a terminal.
        self.live = speaks and self.console.is_terminal and "SLURM_JOB_ID" not in os.environ
        self.log: IO[str] | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._header = ""
        self._last_plain = time.monotonic()

    def open_log(self, path: Path) -> None:
        """Open log.txt to append to it, if this screen is not silent."""
        if self.speaks:
            self.log = path.open("a", encoding="utf-8", errors="backslashreplace")

    def close(self) -> None:
        """End the bar and close the log."""
        self.end_bar()
        if self.log:
            self.log.close()
            self.log = None

    def line(self, text: str, style: str | None = None, *, on_terminal: str | None = None) -> None:
        """Print a line that stays; a live terminal shows `on_terminal` instead, if given."""
        if not self.speaks:
            return
        stamped = f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}  {text}"
        if self.log:
            self.log.write(stamped + "\n")
            self.log.flush()
        if self.live:
            shown = text if on_terminal is None else on_terminal
            (self._bar.console if self._bar else self.console).print(shown, style=style, markup=False)
        else:
            try:
                # rich's `print` would exit the process if the output is closed, but the run is to go on.
                self.console.file.write(f"{stamped}\n")
                self.console.file.flush()
            except OSError as error:
                if (lost := lost_output(error)) is None:
                    raise
                if self.log:
                    self.log.write(f"nobody can read this but here: the standard output is gone ({lost.strerror})\n")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table with the first column aligned left and the others right."""
        widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
        for number, row in enumerate((header, *rows)):
            cells = (f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
            self.line("  ".join((f"{row[0]:<{widths[0]}}", *cells)).rstrip(), style=None if number else "bold")

    def phase_begins(self, prepared: Prepared, resolved: ResolvedPhase) -> None:
        """Print the title of a phase and the table of what trains in it."""
        self.end_bar()
        self._header = ""
        title, rows = phase_summary(resolved, len(prepared.phases))
        if self.live:
            self.console.print(title, style="bold", markup=False)
            self.console.print(phase_table(rows))
            if self.log:
                self.log.write("\n".join([title, *("  " + "  ".join(row) for row in rows)]) + "\n")
        else:
            self.line(title)
            for row in rows:
                self.line("  " + "  ".join(row))

    def epoch_begins(self, title: str, steps: int, done: int) -> None:
        """Begin the bar of an epoch of which `done` steps are already done."""
        if self.live:
            self.end_bar()
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                *([] if self._narrow else [BarColumn(bar_width=24)]),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[after_time]}"),
                console=self.console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(title, total=steps, completed=done, numbers="", after_time="left")
        self._last_plain = time.monotonic()

    def step(self, title: str, done: int, steps: int, numbers: str) -> None:
        """Show that an optimizer step is done; `numbers` are its results (if empty, the previous ones stay)."""
        if self._bar and self._task is not None:
            if numbers and self._narrow:
                numbers = "  ".join(number for number in numbers.split("  ") if not number.startswith("lr "))
            fields: dict[str, Any] = {"numbers": numbers} if numbers else {}
            if done == steps:  # the bar stays until the validation is done
                fields["after_time"] = "validating"
            self._bar.update(self._task, completed=done, **fields)
        elif self.speaks and time.monotonic() - self._last_plain > PLAIN_EVERY_SECONDS:
            self._last_plain = time.monotonic()
            self.line(f"{title}  step {done}/{steps}  {numbers}")

    def end_bar(self) -> None:
        """Remove the bar, if there is one."""
        if self._bar:
            self._bar.stop()
            self._bar, self._task = None, None

    def epoch_ends(
        self,
        resolved: ResolvedPhase,
        epoch: int,
        train_loss: float,
        metrics: Mapping[str, float],
        speed: Speed | None,
        seconds: float,
        monitored: str,
        best_of: Literal["run", "phase"] | None,
    ) -> None:
        """Print a row of the growing table of validation results; the header precedes the first row."""
        self.end_bar()
        shown = {
            name: value
            for name, value in metrics.items()
            if name == monitored or not ("/" in name or name == "loss" or name.startswith("ema_"))
        }
        cells = {"epoch": f"{epoch}/{resolved.phase.epochs}", "train loss": measured(train_loss)}
        cells |= {"val loss": measured(metrics["loss"])} if "loss" in metrics else {}
        cells |= {name: measured(value) for name, value in shown.items()}
        cells |= {**(speed.shown() if speed else {}), "time": duration(seconds)}
        droppable = [*reversed([name for name in shown if name != monitored]), "data wait", "images/s"]
        fitting = self._fitting(cells, droppable) if self.live else cells
        header = _row(cells, names=True)
        if header != self._header:
            self._header = header
            self.line(header, style="bold", on_terminal=_row(fitting, names=True))
        best = {"run": BEST, "phase": BEST_OF_PHASE, None: ""}[best_of]
        style = "green" if best_of else None
        self.line(_row(cells) + best, style=style, on_terminal=_row(fitting) + best)

    @property
    def _narrow(self) -> bool:
        return self.console.width < NARROW

    def _fitting(self, cells: dict[str, str], droppable: list[str]) -> dict[str, str]:
        """Return the cells that fit the terminal, leaving out `droppable` ones in order; log.txt has all cells."""
        for name in droppable:
            if len(_row(cells, names=True) + BEST_OF_PHASE) <= self.console.width:
                break
            cells = {key: value for key, value in cells.items() if key != name}
        return cells

    def run_begins(self, prepared: Prepared, name: str, where: str) -> None:
        """Print the name of a run, its data, its batch arithmetic and where it runs."""
        splits = prepared.splits
        outputs = {"class": ("class", "classes"), "labels": ("label",), "values": ("target",)}
        images = f"{len(splits.train):,} training and {plural(len(splits.val), 'validation image')}"
        self.line(f"{name}: {images}, {plural(len(splits.names), *outputs[prepared.recipe.task.target_kind], spec='')}")
        if splits.skipped:
            self.line(
                f"{plural(len(splits.skipped), 'file is', 'files are')} left out; skipped.txt tells which and why",
                style="yellow",
            )
        self.line(f"{prepared.batching}; {where}")


@dataclasses.dataclass(frozen=True)
class Speed:
    """The speed at which an epoch was trained."""

    images_per_second: float
    waited_share: float
    """Share of the time spent waiting for batches."""

    def shown(self) -> dict[str, str]:
        """Return the columns of the speed in the table of results."""
        return {"images/s": f"{self.images_per_second:.0f}", "data wait": f"{self.waited_share:.0%}"}


BEST = "  * best"
BEST_OF_PHASE = "  best of phase"


def _row(cells: Mapping[str, str], *, names: bool = False) -> str:
    """Return a row of the table of results, or its header."""
    return "  ".join(f"{name if names else value:>{max(len(name), 8)}}" for name, value in cells.items())


def phase_summary(resolved: ResolvedPhase, num_phases: int) -> tuple[str, list[tuple[str, str, str]]]:
    """Return a phase's title, and rows of name, size and detail for what trains, what is frozen, norms and images."""
    phase = resolved.phase
    epochs = plural(phase.epochs, "epoch", spec="")
    title = (
        f"phase {resolved.number + 1}/{num_phases} {phase.name}: {epochs} x "
        f"{plural(resolved.steps_per_epoch, 'step', spec='')}"
        f"{f', patience {phase.patience}' if phase.patience else ''}"
    )
    rows = [
        (
            span(group.names, resolved.lr_scales),
            plural(group.parameters, "parameter"),
            f"lr {group.lr:.3g} (scale {group.lr_scale:g})",
        )
        for group in resolved.groups
    ]
    frozen = resolved.total_parameters - resolved.trainable_parameters
    if frozen:
        rows.append(("frozen", plural(frozen, "parameter"), "in evaluation mode"))
    if resolved.norm_layers:
        kept = "kept" if phase.norm_statistics == "keep" else "updated"
        layers = plural(resolved.norm_layers, "layer trains", "layers train", spec="")
        rows.append(("BatchNorm", layers, f"running statistics {kept}"))
    if resolved.fixed_images:
        rows.append(("pictures", "", resolved.fixed_images))
    return title, rows


def phase_table(rows: list[tuple[str, str, str]]) -> Table:
    """Return the table of a phase for a terminal."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for row in rows:
        table.add_row(*row)
    return table


def span(names: Sequence[str], all_names: Collection[str]) -> str:
    """Return a short name for some of a network's parameters: the module that holds just these, or the modules."""
    pieces = [name.split(".") for name in names]
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*pieces, strict=False))
    common = ".".join(column[0] for column in same)
    inside = [name for name in all_names if f"{name}.".startswith(f"{common}.")] if common else list(all_names)
    if common and len(inside) == len(names):
        return common
    depth = len(common.split(".")) if common else 0
    children = list(dict.fromkeys(".".join(piece[depth : depth + 1]) for piece in pieces))
    shown = (
        " + ".join(children) if len(children) <= 4 else f"{children[0]} ... {children[-1]} ({len(children)} modules)"
    )
    return f"{common}: {shown}" if common else shown
