"""Does this code train what an earlier commit trained, and go on with what that one left, to the bit?

    python benchmarks/against.py COMMIT
    python benchmarks/against.py COMMIT --recipe recipes/digits.py --recipe recipes/hymenoptera.py

Checks the commit out beside this code, and with the small recipe of the tests has the one make what the other takes:
a run that has ended, one that was killed, a prepared copy, stored features, half a sweep. Prints a line for each, and
ends with exit code 1 at the first difference. With --recipe, both train these recipes whole, and their final weights
are compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Code:
    """The launcher of one commit, and a folder in which it works."""

    def __init__(self, root: Path, place: Path, recipe: str) -> None:
        self.root, self.place, self.recipe = root, place, recipe
        self.environ = {
            **os.environ,
            "PYTHONPATH": f"{root}:{place}",
            "LAUNCHER_CACHE": str(place / "cache"),
            "COLUMNS": "120",
        }

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command of the launcher."""
        command = [sys.executable, "-m", "launcher", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.place, env=self.environ, stdout=pipe, stderr=pipe, text=True)

    def run(self, *words: str) -> str:
        """Return what a command prints. Ends the program where it fails."""
        process = self.start(*words)
        out, err = process.communicate()
        if process.returncode:
            sys.exit(
                f"{self.root}: launcher {' '.join(words)}: exit code {process.returncode}\n{out[-2000:]}{err[-2000:]}"
            )
        return out

    def train(self, run_dir: str, *words: str) -> None:
        self.run(self.recipe, *words, "--workers", "0", "--run-dir", run_dir)


def weights(run_dir: Path) -> str:
    """Return a hash of the final weights and their metrics."""
    digest = hashlib.sha256((run_dir / "final/model.safetensors").read_bytes())
    digest.update((run_dir / "final/metrics.json").read_bytes())
    return digest.hexdigest()


def kill_at(code: Code, run_dir: str, step: int, *words: str) -> None:
    """Train until a checkpoint of the step stands there, and kill -9."""
    process = code.start(code.recipe, *words, "--workers", "0", "--run-dir", run_dir)
    wanted = code.place / run_dir / f"checkpoints/step-{step:06d}/MANIFEST.json"
    while not wanted.exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if (code.place / run_dir / "final").exists():
        sys.exit(f"{run_dir} had ended before it could be killed")


def compare(what: str, one: str, other: str) -> None:
    """Print whether two values are the same, and end the program where they are not."""
    print(f"{'same' if one == other else 'DIFFERENT'}: {what}", flush=True)
    if one != other:
        sys.exit(1)


def small(old: Code, new: Code) -> None:
    """What the old code leaves is read, and continued, by the new one."""
    place = old.place
    old.train("ended", "cache=off")
    new.train("anew", "cache=off")
    compare("weights and metrics of a whole run", weights(place / "ended"), weights(place / "anew"))

    kill_at(old, "killed", 6, "cache=off", "checkpoint_every_steps=2")
    new.train("killed", "cache=off", "checkpoint_every_steps=2")
    compare("a run that was killed and goes on with this code", weights(place / "ended"), weights(place / "killed"))

    before = json.loads((place / "ended/evaluation.json").read_text())["metrics"]
    parts = ("--recipe", old.recipe)
    new.run("evaluate", "ended", *parts, "--workers", "0")
    after = json.loads((place / "ended/evaluation.json").read_text())["metrics"]
    compare("its evaluation", json.dumps(before), json.dumps(after))
    for words in (("report", "ended", *parts), ("status", "ended"), ("compare", "ended", "anew")):
        new.run(*words)
    new.run("export", "ended", *parts, "--to", "torch-export", "--out", "ended.pt2")
    said = new.run(old.recipe, "cache=off", "--workers", "0", "--run-dir", "ended")
    compare("its end is known", ("is finished already" in said and "yes") or said, "yes")

    old.train("stored", "cache=disk")
    count = len(list((place / "cache").rglob("*")))
    new.train("from stored", "cache=disk")
    compare(
        "weights on features that the old code has stored", weights(place / "stored"), weights(place / "from stored")
    )
    compare("no feature is stored anew", str(count), str(len(list((place / "cache").rglob("*")))))

    old.run("prepare", old.recipe, "--to", "copy")
    old.train("prepared", "cache=off", "--prepared", "copy")
    new.train("prepared anew", "cache=off", "--prepared", "copy")
    compare(
        "weights on a copy that the old code has prepared",
        weights(place / "prepared"),
        weights(place / "prepared anew"),
    )

    def trials(code: Code, study: str, count: int) -> list[str]:
        words = ("sweep", code.recipe, "optim.lr=1e-3..1e-1 (log)", "--workers", "0", "--study", study)
        rows = json.loads(code.run(*words, "--trials", str(count), "--as", "json"))
        return sorted(json.dumps(row | {"run": Path(row["run"]).name}, sort_keys=True) for row in rows)

    whole = trials(old, "study", 4)
    trials(old, "half", 2)
    compare("the trials of a sweep that goes on with this code", str(whole), str(trials(new, "half", 4)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--recipe", action="append", default=[], metavar="FILE", help="train it whole with both")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place, tree = Path(folder) / "work", Path(folder) / "old"
        place.mkdir()
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), options.commit], check=True)
        try:
            if not options.recipe:
                shutil.copy(ROOT / "tests/support/tiny.py", place)
                small(Code(tree, place, "tiny.py:resumable"), Code(ROOT, place, "tiny.py:resumable"))
            for number, recipe in enumerate(options.recipe):
                file = str((ROOT / recipe).resolve())
                begin = time.perf_counter()
                hashes: list[str] = []
                for code in (Code(tree, place, file), Code(ROOT, place, file)):
                    run_dir = f"{number}-{len(hashes)}"
                    code.train(run_dir, "--no-report")
                    hashes.append(weights(place / run_dir))
                compare(f"{recipe} ({time.perf_counter() - begin:.0f} s)", *hashes)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
