"""A server of weights and data sets on this machine: plain files, and the few calls of the Hugging Face hub.

    with served(folder) as server: ...

`folder/files/x.pth` is there under `/files/x.pth`; `folder/models/org/name/` and `folder/datasets/org/name/` are
repositories of a hub whose HF_ENDPOINT is the server's address.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import socketserver
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

REVISION = "0123456789abcdef0123456789abcdef01234567"
CHUNK = 1 << 16


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.folder = folder
        self.seconds_a_chunk = 0.0
        """How long each 64 KiB takes."""
        self.cut_after: int | None = None
        """Chunks of a file after which the connection ends."""
        self.downloads: list[str] = []
        """Paths of the files that were sent to their end."""
        self.begun: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """A client that leaves in the middle of an answer is what some tests are about."""


class Answers(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        asked = urllib.parse.parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
        found = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/[^/]+", self._path())
        repository = self.server.folder / "datasets" / found[1] if found else None
        if repository is None or not repository.is_dir():
            return self._absent()
        there = [repository / path for path in asked["paths"] if (repository / path).exists()]
        return self._json([_entry(repository, path) for path in there])

    def do_GET(self) -> None:
        path, folder = self._path(), self.server.folder
        if path == "/":
            return self._json({})
        if path.startswith("/files/"):
            return self._file(folder / path[1:])
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            return self._file(folder / (found[1] or "models") / found[2] / found[3])
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            repository = folder / "datasets" / found[1]
            if repository.is_dir():
                siblings = [{"rfilename": entry["path"]} for entry in _tree(repository) if entry["type"] == "file"]
                return self._json({"id": found[1], "sha": REVISION, "siblings": siblings, "tags": []})
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/[^/]+(?:/(.+))?", path):
            repository = folder / "datasets" / found[1]
            inner = repository / (found[2] or "")
            if inner.is_dir():
                recursive = "recursive=true" in self.path.lower()
                return self._json([e for e in _tree(repository) if _below(repository / e["path"], inner, recursive)])
        return self._absent()

    def _path(self) -> str:
        return urllib.parse.unquote(urllib.parse.urlparse(self.path).path)

    def _absent(self) -> None:
        self.send_response(HTTPStatus.NOT_FOUND)
        inside = re.search(r"/(resolve|tree)/", self.path)
        self.send_header("X-Error-Code", "EntryNotFound" if inside else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _file(self, file: Path) -> None:
        if not file.is_file():
            return self._absent()
        content = file.read_bytes()
        begin = int(match[1]) if (match := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        self.send_response(HTTPStatus.PARTIAL_CONTENT if begin else HTTPStatus.OK)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begin))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        # torchvision asks so where an address leads, and reads no further.
        if self.command == "HEAD" or self.headers.get("Method") == "HEAD":
            return None
        self.server.begun.append(self._path())
        for start in range(begin, len(content), CHUNK):
            if self.server.cut_after is not None and start >= begin + self.server.cut_after * CHUNK:
                self.close_connection = True
                return None
            self.wfile.write(content[start : start + CHUNK])
            time.sleep(self.server.seconds_a_chunk)
        self.server.downloads.append(self._path())
        return None


def _tree(repository: Path) -> list[dict[str, Any]]:
    return [_entry(repository, path) for path in sorted(repository.rglob("*"))]


def _entry(repository: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(repository).as_posix()
    oid = hashlib.sha1(name.encode()).hexdigest()  # noqa: S324 - as git names what it holds
    if path.is_dir():
        return {"type": "directory", "oid": oid, "size": 0, "path": name}
    return {"type": "file", "oid": oid, "size": path.stat().st_size, "path": name}


def _below(path: Path, folder: Path, recursive: bool) -> bool:
    return path.is_relative_to(folder) and path != folder if recursive else path.parent == folder


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    with answering(server):
        yield server


@contextlib.contextmanager
def answering(server: socketserver.BaseServer) -> Iterator[None]:
    """Let a server answer, in a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
