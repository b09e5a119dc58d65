"""What saving every 5 steps costs, against never saving, on recipes/hymenoptera.py.

    python benchmarks/checkpoints.py --root ../shared/data/hymenoptera

Trains one epoch of each of the recipe's phases, on its photographs repeated, and saves in every other block of 5 steps
(in the order without, with, with, without, so that a drift of the machine's speed falls on both). A save comes after
the third step of its block: it is written in the background of the other two, and the block ends when it is on the
disk. Prints the ratio of each pair of blocks and their median, in time and in processor time (of all threads of the
process, which other programs on the same cores disturb less), and what of it the run stood still for.

Seen on 2 cores of an AMD EPYC, median of 6 pairs: time 0.989 and processor time 1.002 with the head alone, 0.991 and
1.002 with everything, which is to say nothing that this can measure (pairs went from 0.71 to 1.08). The run stood still
for 28 and 39 ms a save, 0.4 and 0.3 % of 5 steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.repeated import Repeated  # noqa: E402
from launcher.recipe.loading import LoadedRecipe  # noqa: E402
from launcher.training import loop  # noqa: E402
from launcher.training.images import Batch  # noqa: E402
from launcher.training.launch import Launch, World  # noqa: E402
from launcher.training.run import PhaseState, Run  # noqa: E402
from recipes import hymenoptera  # noqa: E402

EVERY_STEPS = 5
FIRST_OF_A_BLOCK = 2
"""Steps before the first block; the save after step 5 is then in the middle of one."""
ORDER = (False, True, True, False)


class Clock:
    """Switches saving on and off by blocks of steps, and times the blocks."""

    def __init__(self) -> None:
        self.blocks: list[tuple[bool, float, float]] = []
        """(with a save, seconds, seconds of processors)"""
        self.stood_still: list[float] = []
        self._saves = False
        self._begin = (0.0, 0.0)
        self._train_step, self._save = loop.train_step, loop.save  # type: ignore[attr-defined]
        loop.train_step, loop.save = self.train_step, self.save  # type: ignore[assignment, attr-defined]

    def train_step(self, run: Run, state: PhaseState, batches: Iterator[Batch], step: int) -> None:
        if step >= FIRST_OF_A_BLOCK and (step - FIRST_OF_A_BLOCK) % EVERY_STEPS == 0:
            run.writer.wait()
            now = time.perf_counter(), time.process_time()
            number = (step - FIRST_OF_A_BLOCK) // EVERY_STEPS
            if number:
                self.blocks.append((self._saves, now[0] - self._begin[0], now[1] - self._begin[1]))
            self._saves = ORDER[number % len(ORDER)]
            self._begin = now
        self._train_step(run, state, batches, step)

    def save(self, run: Run, state: PhaseState) -> None:
        if run.progress.step_in_epoch == 0:  # after the epoch, which is not timed
            self._save(run, state)
        elif self._saves:
            begin = time.perf_counter()
            self._save(run, state)
            self.stood_still.append(time.perf_counter() - begin)


def measure(root: Path, phase: int, pairs: int) -> None:
    recipe = hymenoptera.recipe
    steps = FIRST_OF_A_BLOCK + 2 * pairs * EVERY_STEPS + 1
    data = Repeated(data=dataclasses.replace(recipe.data, root=root), train=steps * recipe.batch_size)  # type: ignore[type-var]
    plan = dataclasses.replace(recipe.freeze_plan[phase], epochs=1)
    short = dataclasses.replace(
        recipe, data=data, freeze_plan=(plan,), checkpoint_every_steps=EVERY_STEPS, final_weights="last"
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        loaded = LoadedRecipe(short, "recipes.hymenoptera", Path(hymenoptera.__file__))
        try:
            loop.run(loaded, Launch(run_dir=Path(folder) / "run", world=World(use_cpu=True), num_workers=1))
        finally:
            loop.train_step, loop.save = clock._train_step, clock._save  # type: ignore[attr-defined]
    ratios: dict[str, list[float]] = {"time": [], "processor time": []}
    for first, second in zip(clock.blocks[::2], clock.blocks[1::2], strict=True):
        without, with_save = sorted((first, second))
        ratios["time"].append(with_save[1] / without[1])
        ratios["processor time"].append(with_save[2] / without[2])
    step = statistics.median(block[1] for block in clock.blocks if not block[0]) / EVERY_STEPS
    print(f"{plan.name}: a step takes {step:.3f} s without saving", flush=True)
    for what, found in ratios.items():
        each = " ".join(f"{ratio:.3f}" for ratio in found)
        print(
            f"{plan.name}: {what}, saving every {EVERY_STEPS} steps / never: {each}; "
            f"median {statistics.median(found):.3f}"
        )
    print(
        f"{plan.name}: of a save, the run stands still for {1000 * statistics.median(clock.stood_still):.0f} ms "
        f"({statistics.median(clock.stood_still) / step / EVERY_STEPS:.1%} of 5 steps)",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the folder with train/ and val/")
    parser.add_argument("--pairs", type=int, default=10, help="blocks with a save, and as many without, per phase")
    options = parser.parse_args()
    for phase in range(len(hymenoptera.recipe.freeze_plan)):
        measure(options.root, phase, options.pairs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
