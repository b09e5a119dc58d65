"""Commands of the launcher, run in processes of their own."""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SUPPORT = Path(__file__).parent
TINY = ("--recipe", str(SUPPORT / "tiny.py"))
"""What commands need for a run whose parts are those of tiny.py, or lie beside it."""


SECONDS_AT_MOST = 540
"""Only against a hang; just under pytest's own limit."""


class CliResult(NamedTuple):
    code: int
    out: str
    err: str


RunCli = Callable[..., CliResult]


FRESH = ("PYTHON", "LC_", "LANG", "OMP_", "KMP_", "MKL_", "HF_", "TORCH_", "XDG_", "HOME", "CUDA_", "MALLOC_", "LD_")
"""How variables begin that Python, or a library, reads when it is imported: such a command gets a fresh process."""
NEW_SESSION = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "ACCELERATE_", "SLURM_", "PMI_", "OMPI_", "TORCHELASTIC_")


class ForkServer:
    """Runs commands of the launcher in forks of a process that has imported what all of them import."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, str(SUPPORT / "fork_server.py"), str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
        theirs.close()
        atexit.register(self.close)

    def close(self) -> None:
        """End the server."""
        self._socket.close()
        self._process.wait()

    def run(self, arguments: Sequence[str], cwd: Path, environ: Mapping[str, str]) -> CliResult:
        """Run `python -m launcher ARGUMENTS`."""
        sys.audit("tests.command")
        message = {"arguments": list(arguments), "cwd": str(cwd), "environ": dict(environ)}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            handles = [out.fileno(), err.fileno()]
            socket.send_fds(self._socket, [json.dumps(message).encode()], handles)
            process = int(self._socket.recv(64))
            try:
                self._socket.settimeout(SECONDS_AT_MOST)
                code = int(self._socket.recv(64))  # nothing, if the server is dead
            except BaseException:
                os.killpg(process, signal.SIGKILL)  # with its DataLoader workers
                self._socket.settimeout(None)
                self._socket.recv(64)
                raise
            finally:
                self._socket.settimeout(None)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode())
        return CliResult(code, *texts)


@functools.cache
def fork_server() -> ForkServer:
    """Return the server of this process, started when it is first needed."""
    return ForkServer()


def run_python(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> CliResult:
    """Run Python with the launcher of this checkout, as no process of any launcher."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(NEW_SESSION)}
    own = {"PYTHONPATH": str(ROOT), "COLUMNS": "120"} | dict(env or {})
    environ = clean | own
    changed = {name for name, value in own.items() if os.environ.get(name) != value} - {"PYTHONPATH"}
    if arguments[:2] == ("-m", "launcher") and not any(name.startswith(FRESH) for name in changed):
        return fork_server().run(arguments[2:], cwd, environ)
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=SECONDS_AT_MOST)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # with its DataLoader workers
        process.wait()
        raise
    return CliResult(process.returncode, out, err)
