"""A fork server that kills runs at their n-th file event, starts them again, and compares the whole run dir.

    python tests/support/kill_server.py FOLDER RECIPE EVERY PROCESSES [OVERRIDES]...

torch and the launcher are imported once, and each start of a run is a fork of this process. A first run is left alone
and its events are counted: each time the main process is about to open a file for writing, or to make, rename, link,
touch or remove something, below the folder. Then a run is killed, with all its processes, at an event, and the same
command is given again. Prints a line for each kill whose end differs, and a summary in JSON.

EVERY is the distance between the events that are taken; all of the beginning (until the base is written) and of the end
(from the renaming of `final/`) are taken in any case.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.utime", "os.truncate", "os.chmod"}
LIMIT_SECONDS = 120.0

PER_START = {"log.txt"}
"""Tells what was on the screen, in all starts, with the time of day."""
ROWS = {"timing.jsonl": ("number", "phase", "epoch"), "proofs.jsonl": ("number", "phase", "when", "step")}
"""Rows of which a start that continues writes some again, with other seconds: they must be of the same things. Where a
phase goes on, a row says that it begins, at that step."""
TIMES = {"report.html"}
"""Shows the seconds of timing.jsonl; must be there, and whole."""


def picture(run_dir: Path) -> dict[str, Any]:
    """Return what a run dir holds, without what may differ between two starts of one command."""
    found: dict[str, Any] = {}
    for path in sorted(run_dir.rglob("*")):
        name = str(path.relative_to(run_dir))
        if path.is_dir():
            found[f"{name}/"] = oct(path.stat().st_mode)
            continue
        found[f"{name} mode"] = oct(path.stat().st_mode)
        if name in PER_START:
            found[name] = "there"
        elif name in TIMES:
            found[name] = path.read_bytes().rstrip().endswith(b"</html>")
        elif name in ROWS:
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            rows = [row | ({"step": None} if row.get("when") == "begins" else {}) for row in rows]
            found[name] = sorted({json.dumps([row.get(key) for key in ROWS[name]]) for row in rows})
        elif name.endswith("progress.json"):
            found[name] = {key: value for key, value in json.loads(path.read_text()).items() if key != "seconds"}
        elif name.endswith("MANIFEST.json"):  # with the hash of progress.json, which holds the seconds
            files = json.loads(path.read_text())["files"]
            found[name] = {key: value for key, value in files.items() if key != "progress.json"}
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    # A step that is saved again after a kill gets a number of its own: "step-000006-1".
    return {again(name): value for name, value in found.items()}


def again(name: str) -> str:
    first, *rest = name.split("/")
    if first == "checkpoints" and rest and rest[0].count("-") == 2:
        rest[0] = rest[0].rpartition("-")[0]
    return "/".join([first, *rest])


def start(words: Sequence[str], output: Path, root: Path, rank: int, size: int, port: int, die_at: int | None) -> int:
    """Fork a process that runs a command, in a session of its own; it dies at an event of the files below `root`."""
    process = os.fork()
    if process:
        return process
    code = 99
    try:
        os.setsid()
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        if size > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            os.environ |= {"LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        events: list[str] = []
        if rank == 0:
            watch(root, events, die_at)
        from launcher.cli import main

        code = main(words)
        if rank == 0 and die_at is None:
            output.with_suffix(".events").write_text("\n".join(list(events)))
    except BaseException:
        import traceback

        traceback.print_exc()
    os._exit(code)


def watch(root: Path, events: list[str], die_at: int | None) -> None:
    me, below = os.getpid(), str(root)

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or os.getpid() != me or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100
        if not path.startswith(below):
            return
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & writes):
            return
        events.append(f"{event} {path[len(below) + 1 :]}")
        if len(events) == die_at:
            os.killpg(0, signal.SIGKILL)

    sys.addaudithook(note)


def launch(words: Sequence[str], output: Path, root: Path, size: int, die_at: int | None = None) -> list[int]:
    """Run a command on `size` processes to its end, and return their exit codes; where one was killed, all are."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        start(words, output.with_suffix(f".{rank}"), root, rank, size, port, die_at if rank == 0 else None)
        for rank in range(size)
    ]
    codes: dict[int, int] = {}
    end = time.monotonic() + LIMIT_SECONDS
    while len(codes) < size:
        for process in processes:
            if process in codes:
                continue
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                codes[process] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > end or -signal.SIGKILL in codes.values():
            for process in processes:
                if process not in codes:
                    os.killpg(process, signal.SIGKILL)
                    codes[process] = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        time.sleep(0.005)
    return [codes[process] for process in processes]


def points(events: Sequence[str], every: int) -> list[int]:
    """Return the numbers of events, from 1, at which runs are to be killed."""
    begun = next(n for n, event in enumerate(events) if event.startswith("os.rename run/checkpoints/.writing-base"))
    ended = next(n for n, event in enumerate(events) if event.startswith("os.rename run/.writing-final"))
    numbers = {*range(begun + 2), *range(ended, len(events)), *range(0, len(events), every)}
    return [number + 1 for number in sorted(numbers)]


def main(folder: Path, recipe: str, every: int, size: int, overrides: Sequence[str]) -> int:
    # Imported, and nothing computed: a fork of a process whose threads have been at work may hang.
    import accelerate  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import launcher.cli
    import launcher.report.end_of_run
    import launcher.training.loop  # noqa: F401

    root = folder / "work"
    os.environ["LAUNCHER_CACHE"] = str(root / "cache")
    words = [recipe, *overrides, "--workers", "0", "--run-dir", "run"]

    def fresh() -> None:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        os.chdir(root)

    fresh()
    codes = launch(words, folder / "whole.out", root, size)
    events = (folder / "whole.events").read_text().splitlines()
    whole = picture(root / "run")
    kills = differences = 0
    for number in points(events, every):
        fresh()
        output = folder / f"{number}.out"
        first = launch(words, output, root, size, number)
        second = launch(words, output, root, size)
        third = launch(words, output, root, size) if number % 7 == 0 else [0]  # finished already: changes nothing
        there = picture(root / "run")
        unlike = sorted(name for name in {*whole, *there} if whole.get(name) != there.get(name))
        kills += 1
        if unlike or any((*codes, *second, *third)) or first[0] != -signal.SIGKILL:
            differences += 1
            tail = output.with_suffix(".0").read_text(errors="replace").splitlines()[-2:]
            print(f"{number} {events[number - 1]}: {first} {second} {third} {unlike} {tail}", flush=True)
    print(json.dumps({"events": len(events), "kills": kills, "differences": differences}), flush=True)
    return int(differences > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]))
