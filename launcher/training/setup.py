"""The start of a run: the checks on all processes, the run dir, and the state restored from a checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from launcher.assets.bundle import verify_assets
from launcher.data.target_precision import build_splits
from launcher.errors import Problems, UserError
from launcher.files import read_metrics
from launcher.recipe.loading import LoadedRecipe
from launcher.recipe.recipe import Recipe
from launcher.recipe.transforms import evaluation
from launcher.recipe.type_names import types_in
from launcher.text import number, plural
from launcher.training.accelerator import start_accelerator
from launcher.training.auto_settings import with_fastest_settings
from launcher.training.checked_images import checked_together, without_broken_images
from launcher.training.checkpoint import Progress, State
from launcher.training.checkpoint_writer import BackgroundWriter
from launcher.training.collectives import from_main, one_at_a_time, raised_on_all
from launcher.training.command import Command
from launcher.training.data_order import TrainingKeys
from launcher.training.images import evaluation_loader, training_loader
from launcher.training.launch import Launch, default_workers
from launcher.training.metrics_log import MetricsLog
from launcher.training.micro_batch_fit import fitted
from launcher.training.model import cpu_state, load_state
from launcher.training.notes import notes as notes_of_plan
from launcher.training.plan_file import write_plan
from launcher.training.preflight import Prepared, prepare
from launcher.training.progress import Screen
from launcher.training.run import Run
from launcher.training.run_dir import RunDir, Start, data_summary
from launcher.training.run_lock import RunLock
from launcher.training.stop import Interruption, clear_markers
from launcher.training.trackers import start_trackers
from launcher.training.watchdog import Watchdog
from launcher.training.worker_limits import check_handover


def workers_of(launch: Launch) -> int:
    """Return the number of data workers: as asked for, or else one per core of this process but one, and at most 8."""
    return default_workers(launch.world.num_cpus) if launch.num_workers is None else launch.num_workers


def begin_run(
    accelerator: Accelerator, rundir: RunDir, loaded: LoadedRecipe, launch: Launch, *, trial: str | None = None
) -> tuple[Run, State | None]:
    """Check everything, then build the run from its newest complete checkpoint or from the beginning.

    `trial` is the name shown for a learning-rate test, a run in a new run dir that is not kept, with no weights saved.
    """
    is_main = accelerator.is_main_process
    screen = Screen(speaks=is_main)
    prepared = _examined_together(accelerator, rundir, loaded.recipe, launch, screen)
    lock = RunLock(rundir.path) if is_main else None
    command = Command(launch.command or (loaded.spec,), launch.starter)
    try:
        with raised_on_all(accelerator):
            if lock:
                lock.acquire(screen.line)
                _begin_run_dir(rundir, prepared, loaded, launch, command, screen)
        resumed = None if trial else _resume(accelerator, rundir, prepared, screen, launch)
        if "auto" in (loaded.recipe.mixed_precision, loaded.recipe.memory_format):
            restart = functools.partial(start_accelerator, loaded.recipe, launch, rundir.path)
            accelerator = with_fastest_settings(accelerator, prepared, rundir, screen, restart)
        if is_main:
            write_plan(prepared, accelerator, workers_of(launch), rundir.path / "plan.json")
        progress = resumed.progress if resumed else Progress()
        metrics: MetricsLog | None = None
        with raised_on_all(accelerator):
            if is_main:
                metrics = MetricsLog(rundir.metrics_jsonl, progress.metrics_rows)
    except BaseException:
        if lock:
            lock.release()
        screen.close()
        raise
    run = _assemble(accelerator, prepared, rundir, launch, screen, _Opened(progress, metrics, lock), command)
    _announce(run, loaded.run_name, trial, is_new=resumed is None)
    return run, resumed


def _examined_together(
    accelerator: Accelerator, rundir: RunDir, recipe: Recipe, launch: Launch, screen: Screen
) -> Prepared:
    """Check assets, run dir, data, weights and phases on all processes, and raise UserError for all that is wrong."""
    with raised_on_all(accelerator):
        if accelerator.is_local_main_process:  # once per machine; the others wait in `raised_on_all`
            verify_assets(recipe, screen.line)
    screen.line("looking at data, weights and phases")
    with raised_on_all(accelerator):
        problems = Problems()
        if accelerator.is_main_process:
            with problems.collected():
                rundir.check(recipe, launch.resume)
        with problems.collected():
            prepared = prepare(
                recipe,
                num_processes=accelerator.num_processes,
                micro_batch_size=launch.micro_batch_size,
                on_cpu=accelerator.device.type == "cpu",
                one_at_a_time=functools.partial(one_at_a_time, accelerator),
                check_images=checked_together(accelerator, screen.line, launch.prepared),
            )
        problems.raise_if_any()
    _same_data_everywhere(accelerator, prepared)
    if launch.micro_batch_size == "auto":
        with raised_on_all(accelerator):
            prepared = dataclasses.replace(prepared, batching=fitted(accelerator, prepared))
    with raised_on_all(accelerator):
        check_handover(prepared, workers_of(launch), launch.world.num_local_processes)
    return prepared


def _begin_run_dir(
    rundir: RunDir, prepared: Prepared, loaded: LoadedRecipe, launch: Launch, command: Command, screen: Screen
) -> None:
    """Write the files that a run dir holds from the beginning, or check them; the caller must hold the lock."""
    start = Start(
        recipe=loaded.recipe,
        recipe_source=loaded.path.read_text(encoding="utf-8"),
        command=command,
        splits=prepared.splits,
        lr_scales_of_phases=tuple(phase.lr_scales for phase in prepared.phases),
        accepts_changed_code=launch.accepts_changed_code,
    )
    notes = rundir.begin(start, screen.line)
    screen.open_log(rundir.log_txt)
    for note in notes:
        screen.line(note, style="yellow")
    clear_markers(rundir.path)


@dataclasses.dataclass(frozen=True)
class _Opened:
    """The progress, log of metrics and lock of a run dir that this process has opened."""

    progress: Progress
    metrics: MetricsLog | None
    lock: RunLock | None


def _assemble(
    accelerator: Accelerator,
    prepared: Prepared,
    rundir: RunDir,
    launch: Launch,
    screen: Screen,
    opened: _Opened,
    command: Command,
) -> Run:
    """Put the run together, with its loaders, watchdog and checkpoint writer."""
    recipe, num_workers = prepared.recipe, workers_of(launch)
    keys = TrainingKeys(len(prepared.splits.train), prepared.batching, accelerator.process_index, recipe.seed)
    loading = {"num_workers": num_workers, "pin_memory": accelerator.device.type == "cuda"}
    train_loader = training_loader(
        prepared.splits.train, recipe.augment.build(prepared.preprocessing), keys, seed=recipe.seed, **loading
    )
    val_loader = evaluation_loader(
        prepared.splits.val,
        evaluation(prepared.preprocessing),
        batch_size=prepared.batching.micro_batch_size,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        **loading,
    )
    interruption = Interruption(
        rundir.path,
        accelerator.is_main_process,
        accelerator.num_processes,
        stop_at=launch.stop_at,
        leave_with_parent=launch.world.leave_with_parent,
    )
    return Run(
        accelerator=accelerator,
        prepared=prepared,
        rundir=rundir,
        screen=screen,
        progress=opened.progress,
        metrics=opened.metrics,
        model=prepared.model,
        keys=keys,
        train_loader=train_loader,
        val_loader=val_loader,
        val_batch_size=prepared.batching.micro_batch_size,
        num_workers=num_workers,
        num_local_processes=launch.world.num_local_processes,
        lock=opened.lock,
        interruption=interruption,
        watchdog=Watchdog(recipe.hang_limit_seconds, accelerator.process_index, lambda: interruption.asked_at),
        writer=BackgroundWriter(rundir.checkpoints),
        command=command,
        parts=1 if launch.micro_batch_size == "auto" else None,
    )


def _announce(run: Run, run_name: str, trial: str | None, *, is_new: bool) -> None:
    """Start the trackers, and print what begins, where, and the notes on it."""
    accelerator, recipe, screen = run.accelerator, run.recipe, run.screen
    for way in start_trackers(accelerator, recipe, run_name, run.rundir.path):
        screen.line(way)
    workers = plural(run.num_workers, "data worker")
    where = f"{accelerator.device.type}, mixed_precision={accelerator.mixed_precision}, {workers} per process"
    if accelerator.device.type == "cuda":
        exact = "bit for bit" if recipe.deterministic else "to rounding (deterministic=true: bit for bit)"
        where += f"; a run that is stopped and continued is equal {exact}"
    screen.run_begins(run.prepared, trial or str(run.rundir.path), where)
    if accelerator.is_main_process and is_new and trial is None:
        for note in notes_of_plan(run.prepared):
            screen.line(f"note: {note}", style="yellow")


def needed_at_the_end(prepared: Prepared, progress: Progress) -> dict[str, int]:
    """Return the steps of checkpoints that a run needs to end besides the one it continues from, by their description.

    These are the best of a phase with patience, and the best of the run if `final/` is to hold it.
    """
    needed = {}
    phase = prepared.phases[progress.phase].phase if progress.phase < len(prepared.phases) else None
    if progress.phase_best is not None and phase is not None and phase.patience is not None:
        needed["the best of its phase"] = progress.phase_best.step
    if progress.run_best is not None and prepared.recipe.final_weights == "best":
        needed["the best of the run"] = progress.run_best.step
    return needed


def _same_data_everywhere(accelerator: Accelerator, prepared: Prepared) -> None:
    """Raise UserError if the processes see different data: each would train on its own, with no error."""
    mine = data_summary(prepared.splits)
    everyones: list[dict[str, Any]] = gather_object([mine])
    for process, theirs in enumerate(everyones):
        differing = [key for key in mine if theirs[key] != everyones[0][key]]
        if differing:
            raise UserError(
                f"data: processes 0 and {process} see different data ({', '.join(differing)}); the data part must give "
                "the same samples in the same order on every process: list files sorted, draw from `seed` alone"
            )


def _resume(
    accelerator: Accelerator, rundir: RunDir, prepared: Prepared, screen: Screen, launch: Launch
) -> State | None:
    """Load the newest complete checkpoint into the model and return it, or write the base of a new run and return None.

    The main process chooses the checkpoint, so that all processes load the same.
    """
    checkpoints = rundir.checkpoints

    def choose() -> Path | None:
        newest = checkpoints.newest(functools.partial(needed_at_the_end, prepared))
        for refused in checkpoints.refused:
            screen.line(f"checkpoint passed over: {refused}", style="yellow")
        if newest is not None:
            return newest
        if launch.resume == "must":
            raise UserError(f"--resume must: {rundir.path} holds no complete checkpoint to continue from")
        if checkpoints.refused:
            screen.line("no checkpoint can be continued from: the run begins again", style="yellow")
        try:
            checkpoints.save_base(cpu_state(prepared.model))
        except OSError as error:
            raise UserError(
                f"{checkpoints.folder}: cannot be written ({error.strerror or error}); make room, and give the "
                "same command again"
            ) from error
        return None

    newest = from_main(accelerator, choose)
    if newest is None:
        return None
    with raised_on_all(accelerator):
        state = checkpoints.load(newest)
        load_state(prepared.model, state.model)
    phase = prepared.phases[state.progress.phase].phase
    screen.line(
        f"continuing {rundir.path} at step {state.progress.step} "
        f"({phase.name}, epoch {min(state.progress.epoch + 1, phase.epochs)}/{phase.epochs})"
    )
    return state


def say_finished(
    accelerator: Accelerator, rundir: RunDir, loaded: LoadedRecipe, launch: Launch, left: Callable[[RunDir], list[str]]
) -> bool:
    """Print that a run of this recipe is finished and return True, or return False if a part of its end is left to do.

    `left` names the files that its end should have left in the run dir, but has not. Raise UserError if the run dir
    belongs to another recipe, or if `final/` is damaged and cannot be written again.
    """

    def is_done() -> bool:
        rundir.check(loaded.recipe, launch.resume if launch.resume != "must" else "auto")
        _check_data_of_finished(rundir, loaded.recipe, launch)
        damage = rundir.damage_of_final()
        missing = rundir.lacks()
        missing += left(rundir) if launch.evaluate_final and not damage else []
        return _finished_or_at_its_end(rundir, loaded, damage, missing)

    return from_main(accelerator, is_done)


def _check_data_of_finished(rundir: RunDir, recipe: Recipe, launch: Launch) -> None:
    """Raise UserError if the recipe names data other than those that a finished run was trained on.

    The data are read only if the recipe names them differently.
    """
    if not (named := rundir.differences(recipe).data):
        return
    splits = build_splits(recipe)
    if (rundir.path / "skipped.txt").is_file():
        splits = without_broken_images(recipe, splits, print, launch.prepared)
    if changed := rundir.changes_of_data(splits):
        raise UserError(
            f"--run-dir {rundir.path}: holds a run on other data ({'; '.join([*named, *changed])}); give another "
            "--run-dir"
        )


def _finished_or_at_its_end(rundir: RunDir, loaded: LoadedRecipe, damage: str | None, missing: list[str]) -> bool:
    if damage or missing:
        if _at_its_end(rundir, loaded.recipe):
            what = damage or f"{', '.join(missing)} missing"
            print(f"{rundir.path}: trained to its end, but {what}; doing what is left")
            return False
        if damage:
            raise UserError(f"{damage}; bring it back (there is no checkpoint of the end to write it from)")
    metrics = read_metrics(rundir.final / "metrics.json")
    shown = ", ".join(f"{name} {number(value)}" for name, value in metrics.items() if "/" not in name)
    option = f" --recipe {shlex.quote(str(loaded.path))}" if types_in(loaded.recipe) else ""
    report = f"python -m launcher report {shlex.quote(str(rundir.path))}{option}"
    lacks = f" (without {', '.join(missing)}: {report})" if missing else ""
    print(
        f"{rundir.path} is finished already ({shown}); the model is in {rundir.final}{lacks}. "
        "To run again, give another --run-dir"
    )
    lock = RunLock(rundir.path)
    with contextlib.suppress(UserError, OSError):  # another start may hold the lock
        lock.acquire(print)  # takes over the lock of a start that was killed before it could release it
        rundir.clear_away()
        lock.release()
    return True


def _at_its_end(rundir: RunDir, recipe: Recipe) -> bool:
    """Return whether the newest complete checkpoint is that of the end, so that nothing would be trained again."""
    newest = rundir.checkpoints.newest()
    rundir.checkpoints.refused.clear()
    if newest is None or not rundir.checkpoints.has_base():
        return False
    progress = rundir.checkpoints.progress_of(newest)
    return progress.phase_ended and progress.phase == len(recipe.freeze_plan) - 1
