"""The program that started this process: accelerate launch, torchrun, or something else, and what it was asked for."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from launcher.training.command import PYTHON


@dataclasses.dataclass(frozen=True)
class Parent:
    """The parent process. Empty where the system does not let us look."""

    command: tuple[str, ...] = ()
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """As it was when the parent started; what the parent has set for its children since is not in it."""

    @property
    def accelerate_words(self) -> list[str] | None:
        """The words after `accelerate launch`; None where the parent is another program."""
        words = list(self.command)
        names = [Path(word).name.removesuffix(".exe") for word in words[:4]]
        for index, name in enumerate(names):
            if name in ("accelerate", "accelerate.commands.accelerate_cli") and words[index + 1 : index + 2] == [
                "launch"
            ]:
                return words[index + 2 :]
            if name in ("accelerate-launch", "accelerate.commands.launch"):
                return words[index + 1 :]
        return None

    @property
    def is_launcher(self) -> bool:
        """Whether it starts one process for each device and sets their environment."""
        names = {Path(word).name for word in self.command[:4]}
        return self.accelerate_words is not None or bool(names & {"torchrun", "torch.distributed.run"})


def read_parent() -> Parent:
    import psutil

    try:
        process = psutil.Process(os.getppid())
        return Parent(tuple(process.cmdline()), process.environ())
    except (psutil.Error, OSError):
        return Parent()


def starter_of(parent: Parent, num_machines: int = 1) -> tuple[str, ...]:
    """Return the words before a run's own: `accelerate launch` or torchrun with the options that they were given, else
    `python -m launcher`.

    Over several machines each has options of its own, so there it is the form that starts on one.
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
    """What `accelerate launch` was asked for, as its own parser reads it."""

    num_processes: int | None
    """From the option, or else the config file; over all machines."""
    source: str
    """Where that number was found, in words."""
    wants_cpu: bool
    sets_threads: bool
    """Whether --num_cpu_threads_per_process was given."""
    rest: tuple[str, ...]
    """The script or module, and its arguments."""
    num_machines: int = 1
    """From the option, or else the config file."""


def accelerate_request(parent: Parent) -> AccelerateRequest | None:
    """None where the parent is not `accelerate launch`."""
    words = parent.accelerate_words
    if words is None:
        return None
    from accelerate.commands.launch import launch_command_parser

    try:
        options = launch_command_parser().parse_args(words)
    except SystemExit:  # Another version's options; it would not have started us with wrong ones.
        return None
    rest = ("-m",) if options.module else ()
    rest += (options.training_script, *options.training_script_args)
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
    return AccelerateRequest(number, source, wants_cpu, sets_threads, rest, num_machines or 1)


def _config(options: argparse.Namespace) -> tuple[str, argparse.Namespace] | None:
    """The config file that accelerate launch has read, by its rule: a given one, or its default one unless --cpu."""
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    path = options.config_file
    if path is None and not options.cpu and Path(default_config_file).is_file():
        path = default_config_file
    return (path, load_config_from_file(path)) if path else None
