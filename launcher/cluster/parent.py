"""Program that started this process (accelerate launch, torchrun, or another), and the options it was given."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from launcher.training.command import PYTHON


@dataclasses.dataclass(frozen=True)
class Parent:
    """Parent process; empty if the system does not let us look."""

    command: tuple[str, ...] = ()
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Environment with which the parent was started, without what it has set for its children since."""

    @property
    def accelerate_words(self) -> list[str] | None:
        """Words after `accelerate launch`, or None if the parent is another program."""
        words = list(self.command)
        names = [Path(word).name.removesuffix(".exe") for word in words[:4]]
        for index, name in enumerate(names):
            is_cli = name in ("accelerate", "accelerate.commands.accelerate_cli")
            if is_cli and words[index + 1 : index + 2] == ["launch"]:
                return words[index + 2 :]
            if name in ("accelerate-launch", "accelerate.commands.launch"):
                return words[index + 1 :]
        return None

    @property
    def is_launcher(self) -> bool:
        """True if the parent starts one process for each device and sets their environment."""
        names = {Path(word).name for word in self.command[:4]}
        return self.accelerate_words is not None or bool(names & {"torchrun", "torch.distributed.run"})


def read_parent() -> Parent:
    """Return the parent of this process."""
    import psutil

    try:
        process = psutil.Process(os.getppid())
        return Parent(tuple(process.cmdline()), process.environ())
    except (psutil.Error, OSError):
        return Parent()


def starter_of(parent: Parent, num_machines: int = 1) -> tuple[str, ...]:
    """Return the words before a run's own, to start it as this process was started.

    They are `accelerate launch` or torchrun with the options that these were given, else `python -m launcher`. With
    several machines, each of which has options of its own, they are `accelerate launch` as it starts on one machine.
    """
    if not parent.is_launcher:
        return PYTHON
    words = [Path(word).name if place < 4 else word for place, word in enumerate(parent.command)]
    programs = ("accelerate", "accelerate-launch", "torchrun")
    modules = ("accelerate.commands.accelerate_cli", "accelerate.commands.launch", "torch.distributed.run")
    first = next((place for place, word in enumerate(words[:4]) if word in (*programs, *modules)), None)
    if num_machines > 1 or first is None or "launcher" not in words:
        return ("accelerate", "launch", "-m", "launcher")
    start = ("python", "-m") if words[first] in modules else ()
    return (*start, *words[first : words.index("launcher") + 1])


@dataclasses.dataclass(frozen=True)
class AccelerateRequest:
    """Options of `accelerate launch`, as its own parser reads them."""

    num_processes: int | None
    """Number of processes over all machines, from the option, or else from the config file."""
    source: str
    """Description of where that number was found."""
    wants_cpu: bool
    sets_threads: bool
    """True if --num_cpu_threads_per_process was given."""
    program: tuple[str, ...]
    """Script or module, and its arguments."""
    num_machines: int = 1
    """Number of machines, from the option, or else from the config file."""


def accelerate_request(parent: Parent) -> AccelerateRequest | None:
    """Return what `accelerate launch` was asked for, or None if the parent is another program.

    It is also None if the installed parser does not know the options.
    """
    words = parent.accelerate_words
    if words is None:
        return None
    from accelerate.commands.launch import launch_command_parser

    try:
        options = launch_command_parser().parse_args(words)
    except SystemExit:  # options of another version, which would not have started us with wrong ones
        return None
    program = ("-m",) if options.module else ()
    program += (options.training_script, *options.training_script_args)
    number, source, wants_cpu = options.num_processes, "--num_processes", options.cpu
    num_machines = options.num_machines
    config = _config(options)
    if config is not None:
        path, settings = config
        kind = str(getattr(settings.distributed_type, "value", settings.distributed_type))
        wants_cpu = wants_cpu or bool(settings.use_cpu) or kind == "MULTI_CPU"
        num_machines = num_machines or settings.num_machines
        if number is None and settings.num_processes is not None and settings.num_processes > 0:
            number, source = settings.num_processes, f"num_processes in {path}"
    sets_threads = options.num_cpu_threads_per_process is not None
    return AccelerateRequest(number, source, wants_cpu, sets_threads, program, num_machines or 1)


def _config(options: argparse.Namespace) -> tuple[str, argparse.Namespace] | None:
    """Return the config file that accelerate launch has read, and its settings, or None.

    By accelerate's own rule this is the given file, or else the default one unless --cpu is given.
    """
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    path = options.config_file
    if path is None and not options.cpu and Path(default_config_file).is_file():
        path = default_config_file
    return (path, load_config_from_file(path)) if path else None
