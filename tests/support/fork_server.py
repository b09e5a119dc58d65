"""A process that has imported torch and its kin, and forks for each command: 2 s of a core less than a fresh Python.

Started by `commands.ForkServer`, which hands over a socket. Each message is JSON (arguments, cwd, environ) with two
open files, the command's stdout and stderr; the answers are the process id, and later the exit code. Nothing of the
launcher is imported here, so that what a command imports, and when, is as in a fresh process.
"""

from __future__ import annotations

import array
import gc
import json
import os
import runpy
import signal
import socket
import sys

PRELOADED = (
    "torch",
    "torch.distributed",
    "torchvision",
    "accelerate",
    "datasets",
    "pydantic",
    "rich",
    "typer",
    "jinja2",
)


def serve(connection: socket.socket) -> dict[str, object]:
    """Fork for each message; return, in the child, what it asks for. Ends with the process that asks."""
    for name in PRELOADED:
        __import__(name)
    gc.freeze()  # no fork goes through all of torch when it collects
    plain_path = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]  # noqa: PTH100, PTH120
    while True:
        message, handles = _receive(connection)
        if not message:
            os._exit(0)
        child = os.fork()
        if child == 0:
            connection.close()
            for target, handle in zip((1, 2), handles, strict=True):
                os.dup2(handle, target)
                os.close(handle)
            return json.loads(message) | {"path": plain_path}  # type: ignore[no-any-return]
        for handle in handles:
            os.close(handle)
        connection.sendall(b"%d\n" % child)
        _, status = os.waitpid(child, 0)
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    handles = array.array("i")
    message, ancillary, _, _ = connection.recvmsg(1 << 20, socket.CMSG_LEN(2 * handles.itemsize))
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            handles.frombytes(data[: len(data) - len(data) % handles.itemsize])
    return message, list(handles)


def become(asked: dict[str, object]) -> None:
    """Go on as `python -m launcher ARGUMENTS` in the asked folder and environment."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(str(asked["cwd"]))
    os.environ.clear()
    os.environ.update(asked["environ"])  # type: ignore[call-overload]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[:] = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *asked["path"]]  # type: ignore[misc]  # noqa: PTH109
    sys.argv[:] = ["-m", *asked["arguments"]]  # type: ignore[misc]
    runpy._run_module_as_main("launcher", alter_argv=True)  # type: ignore[attr-defined]


if __name__ == "__main__":
    become(serve(socket.socket(fileno=int(sys.argv[1]))))
