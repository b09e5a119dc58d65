"""Population of a phase's cache: the decision, then rows in memory or on disk, computed where they are missing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.data.digests import Digests, content_digests
from launcher.errors import Problems, UserError
from launcher.recipe.protocols import Split
from launcher.recipe.transforms import evaluation
from launcher.text import readable_size
from launcher.training.collectives import from_main, raised_on_all
from launcher.training.feature_cache.build import Builder, Views
from launcher.training.feature_cache.directory import cache_folder
from launcher.training.feature_cache.disk_rows import rows_on_disk
from launcher.training.feature_cache.frozen_part import Frozen
from launcher.training.feature_cache.identity import features_name, transform_identity
from launcher.training.feature_cache.loader import Source
from launcher.training.feature_cache.parts import Part
from launcher.training.feature_cache.recorded_choice import decided, record
from launcher.training.feature_cache.shards import InMemory, Shards, blocks_in
from launcher.training.feature_cache.source import stored, views_of
from launcher.training.images import EvaluationImages
from launcher.training.preflight import ResolvedPhase
from launcher.training.run import Run

SECONDS_BETWEEN_LOOKS = 1.0


def with_stored_features(run: Run, resolved: ResolvedPhase, frozen: Frozen, source: Source) -> Source:
    """Return the phase's batches, from stored features if the recipe or the measured times say so.

    All processes call it together.

    Raises:
        StoppedError: The run is asked to stop meanwhile.
        UserError: There is no room for what the recipe asks for.
    """
    if run.recipe.cache == "off":
        return source
    folder = cache_folder()
    run.watchdog.beat("naming the stored features")
    parts = _parts(run, resolved, frozen, folder)
    row_bytes = frozen.layout.row_bytes
    store, why = decided(run, resolved, frozen, parts, folder)
    views = [part.count for part in parts if part.view is not None]
    others = [f"{part.count:,}" for part in parts if part.view is None]
    shown = [f"{len(views)} views of {views[0]:,}"] if len(views) > 1 else [f"{count:,}" for count in views]
    images = " + ".join([*shown, *others])
    total = readable_size(sum(part.count for part in parts) * row_bytes)
    images = "1 image" if images == "1" else f"{images} images"
    title = f"{resolved.phase.name}: outputs of what is frozen for {images} x {readable_size(row_bytes)} = {total}"
    if store == "none":
        run.screen.line(f"{title}: not stored ({why})")
        return source
    run.screen.line(f"{title}: {'in memory' if store == 'memory' else f'stored in {folder}'} ({why})")
    rows: list[InMemory | Shards] = []
    begin = time.perf_counter()
    for part in parts:
        if store == "memory":
            rows.append(_in_memory(run, frozen, part))
            continue
        try:
            rows.append(rows_on_disk(run, frozen, part, folder))
        except OSError as error:
            if run.recipe.cache == "disk":
                raise UserError(_refused(folder, error)) from error
            run.screen.line(f"{_refused(folder, error)}; going on without", style="yellow")
            record(run, resolved, "none", str(error))
            return source
    seconds = time.perf_counter() - begin
    run.screen.line(f"{resolved.phase.name}: features are there after {seconds:.1f} s")
    if run.accelerator.is_main_process:
        row = {"number": resolved.number, "phase": resolved.phase.name, "features": store}
        run.rundir.add_timing(row | {"images": sum(part.count for part in parts), "seconds": seconds})
    return stored(run, frozen, source, tuple(rows[:-1]), rows[-1])


def _refused(folder: Path, error: OSError) -> str:
    return (
        f"features cannot be stored in {folder} ({error.strerror or error}); make room, name another folder by "
        "LAUNCHER_CACHE, or use cache=memory or cache=off"
    )


def _parts(run: Run, resolved: ResolvedPhase, frozen: Frozen, folder: Path) -> list[Part]:
    """Return what is to be stored, validation last; the main process reads the images' content for all."""
    prepared, recipe = run.prepared, run.recipe
    entries: list[tuple[str, Views, Any, int | None, str]] = []
    if resolved.fixed_views is not None:
        views = views_of(run, resolved.fixed_views)
        for view in range(max(1, resolved.fixed_views)):
            augment = recipe.augment if resolved.fixed_views else None
            identity = transform_identity(prepared.preprocessing, augment, recipe.seed, view)
            title = f"features of view {view + 1}/{resolved.fixed_views}" if resolved.fixed_views else "features"
            entries.append((title, views, prepared.splits.train, view, identity))
    val = EvaluationImages(prepared.splits.val, evaluation(prepared.preprocessing))
    identity = transform_identity(prepared.preprocessing, None, recipe.seed, 0)
    entries.append(("features for validation", val, prepared.splits.val, None, identity))

    splits = {id(split): split for _, _, split, _, _ in entries}
    digests = _digests(run, splits, folder)

    def names() -> list[str]:
        prefix = frozen.identity()
        return [features_name(prefix, split, digests[id(split)], which) for _, _, split, _, which in entries]

    named = from_main(run.accelerator, names)
    return [
        Part(title, images, len(split), view, name)
        for (title, images, split, view, _), name in zip(entries, named, strict=True)
    ]


def _digests(run: Run, splits: Mapping[int, Split], folder: Path) -> dict[int, Digests]:
    """Hash the content of all images on the main process; the others keep step with it, alive and ready to stop."""
    digests: dict[int, Digests] = {}

    def read() -> Iterator[int]:
        for key, split in splits.items():
            digests[key] = yield from content_digests(split.images, folder / "digests", run.num_workers)

    reading = read()
    problems = Problems()
    while True:
        run.check_in("reading the content of the images")
        finished = False
        if run.accelerator.is_main_process:
            until = time.monotonic() + SECONDS_BETWEEN_LOOKS
            try:
                while not finished and time.monotonic() < until:
                    finished = next(reading, None) is None
            except OSError as error:
                problems.found.append(f"data: {error.filename or error}: cannot be read ({error.strerror or error})")
                finished = True
        if run.interruption.anywhere(finished):
            break
    with raised_on_all(run.accelerator):
        problems.raise_if_any()
    return digests


def _in_memory(run: Run, frozen: Frozen, part: Part) -> InMemory:
    builder = Builder(run, frozen.prefix, frozen.layout, part.title, blocks_in(part.count))
    try:
        return builder.in_memory(part.images, part.count, part.key_of)
    finally:
        builder.close()
