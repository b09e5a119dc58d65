"""Rendezvous of all processes of a run, with a message about the wait, and a limit to it."""

from __future__ import annotations

import datetime
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from launcher.errors import UserError
from launcher.training.launch import World

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

SILENT_SECONDS = 10.0
"""Time to wait in silence before the first message."""
REPEAT_SECONDS = 60.0
LIMIT_VARIABLE = "LAUNCHER_WAIT_SECONDS"
LIMIT_SECONDS = 600.0
"""Time after which a missing process is given up: tasks of one srun start together, and read the same recipe."""
_LOOK_EVERY_SECONDS = 0.2


def meet(world: World, report: Callable[[str], None], environ: Mapping[str, str] = os.environ) -> TCPStore | None:
    """Wait until all processes of a run have come to the address of process 0.

    Keep the store that is returned until the processes have joined, as torch goes on using it.

    torch itself waits in silence, for as long as its collectives may take. Launchers such as torchrun and accelerate
    launch let their processes meet before they start them; then, and with a lone process, this returns None at once.

    Raises:
        UserError: Some have not come after LAUNCHER_WAIT_SECONDS (600), or the network fails.
    """
    if world.num_processes == 1 or "TORCHELASTIC_RUN_ID" in environ:
        return None
    address, port = environ["MASTER_ADDR"], environ["MASTER_PORT"]
    where, count = f"{address}:{port}", world.num_processes
    if not port.isdecimal():
        raise UserError(f"MASTER_PORT={port}: must be a whole number")
    waiting = _Waiting(report, where, count, _limit(environ))
    if not world.is_main_process:
        while not _answers(address, int(port)):
            waiting.look("process 0 has not come")
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:
        store = TCPStore(
            address,
            int(port),
            is_master=world.is_main_process,
            timeout=datetime.timedelta(seconds=30),
            wait_for_workers=False,
            multi_tenant=True,  # so that torch's own store at this address is the same
        )
        come = store.add("launcher/come", 1)
        while come < count:
            waiting.look(f"{come} of {count} {'has' if come == 1 else 'have'} come")
            come = store.add("launcher/come", 0)
    except RuntimeError as error:  # the class of torch's network errors
        first = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"the {count} processes of this run cannot meet at {where}: {first}") from error
    return store


class _Waiting:
    def __init__(self, report: Callable[[str], None], where: str, count: int, limit: float) -> None:
        self._report, self._where, self._count, self._limit = report, where, count, limit
        self._begin = time.monotonic()
        self._next = self._begin + SILENT_SECONDS

    def look(self, state: str) -> None:
        """Sleep for a moment, after a message if one is due.

        Raises:
            UserError: The time is over.
        """
        now = time.monotonic()
        if now - self._begin > self._limit:
            raise UserError(
                f"waited {self._limit:.0f} s for the {self._count} processes of this run at {self._where}: {state}; "
                "look at the logs of the others, or start as many as were asked for (srun --ntasks, WORLD_SIZE)"
            )
        if now >= self._next:
            self._next = now + REPEAT_SECONDS
            self._report(f"waiting for the {self._count} processes of this run at {self._where}: {state}")
        time.sleep(_LOOK_EVERY_SECONDS)


def _answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=5):
            return True
    except OSError:
        return False


def _limit(environ: Mapping[str, str]) -> float:
    text = environ.get(LIMIT_VARIABLE, "")
    if not text:
        return LIMIT_SECONDS
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{LIMIT_VARIABLE}={text}: must be a number of seconds") from None
