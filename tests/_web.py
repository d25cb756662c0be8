"""Servers on this machine: files with ranges and with faults, what the Hub's client asks of the Hub, and S3."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest


class Handler(BaseHTTPRequestHandler):
    """What both servers do: answer, count, and be quiet."""

    server: Any

    def answer(self, body: bytes = b"", status: int = 200, length: int | None = None, **headers: str) -> None:
        """`length` may say more than the body has."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.server.sent += len(body)  # before the client can look
            self.wfile.write(body)

    def answer_json(self, value: Any, status: int = 200, **headers: str) -> None:
        self.answer(json.dumps(value).encode(), status, Content_Type="application/json", **headers)

    def part(self, data: bytes, **headers: str) -> None:
        """The whole, or the range that is asked for."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            self.answer(data, Accept_Ranges="bytes", **headers)
            return
        start, end = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        if start >= len(data):
            self.answer(b"", 416)
            return
        where = f"bytes {start}-{end}/{len(data)}"
        self.answer(data[start : end + 1], 206, Content_Range=where, Accept_Ranges="bytes", **headers)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def note(self) -> None:
        self.server.asked.append((self.command, self.path, self.headers.get("Range")))

    def log_message(self, *words: object) -> None:
        """Quiet."""


class FileHandler(Handler):
    """Serves `server.files` by path. `server.fault`: "" or how it misbehaves, from the second request on."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.note()
        data, fault = self.server.files.get(urlsplit(self.path).path.lstrip("/")), self.server.fault
        if isinstance(fault, int):
            self.answer(b"", fault)
        elif data is None:
            self.answer(b"", 404)
        elif fault == "no-ranges":
            self.answer(data)
        elif fault == "cut" and self.command == "GET":
            del self.headers["Range"]
            self.answer(data[: len(data) // 2], length=len(data))
            self.close_connection = True
        elif fault == "shrinks" and self.command == "GET":
            self.part(data[: len(data) // 2])
        elif fault == "grows" and self.command == "GET":
            del self.headers["Range"]
            self.answer(data + b"more")
        elif fault == "garbage" and self.command == "GET":
            self.part(bytes(len(data)))
        else:
            self.part(data)


class HubHandler(Handler):
    """A Hub of models in memory: `server.repos[name]` is a list of commits, each (files by path, "sha").

    `server.token`: what writing, and reading what is in `server.private`, needs. `server.big`: from how many bytes on a
    file goes through LFS. `server.before_commit` is called before a commit is looked at.
    """

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.note()
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/cdn/"):
            self.part(self.server.blobs[path[5:]])
            return
        resolved = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", path)
        found = resolved or about
        commit = self.commit(found[1], (found[2] if resolved else found[3]) or "main") if found else None
        if found is None or commit is None:
            return
        files, sha = commit
        if resolved:
            self.resolve(files.get(resolved[3]), sha)
        elif found[2] == "tree":
            self.tree(files, found[4] or "")
        else:
            self.answer_json({"id": found[1], "sha": sha, "siblings": [{"rfilename": name} for name in files]})

    def resolve(self, data: bytes | None, sha: str) -> None:
        if data is None:
            self.answer(b"", 404, X_Error_Code="EntryNotFound")
        elif len(data) >= self.server.big:
            oid = hashlib.sha256(data).hexdigest()
            self.server.blobs[oid] = data
            linked = {"X_Linked_Size": str(len(data)), "X_Linked_ETag": f'"{oid}"', "X_Repo_Commit": sha}
            where = f"http://127.0.0.1:{self.server.server_address[1]}/cdn/{oid}?signature=secret"
            self.answer(b"", 302, Location=where, **linked)
        else:
            self.part(data, X_Repo_Commit=sha, ETag=f'"{hashlib.sha1(data).hexdigest()}"')

    def tree(self, files: dict[str, bytes], folder: str) -> None:
        inside = [name for name in files if not folder or name.startswith(f"{folder}/")]
        if folder and not inside:
            self.answer(b"", 404, X_Error_Code="EntryNotFound")
            return
        rows = []
        for name in inside:
            if "/" not in name.removeprefix(f"{folder}/" if folder else ""):
                oid = hashlib.sha1(files[name]).hexdigest()
                rows.append({"type": "file", "path": name, "size": len(files[name]), "oid": oid})
        self.answer_json(rows)

    def commit(self, repo: str, revision: str) -> tuple[dict[str, bytes], str] | None:
        """The commit of a revision; None where an error was answered."""
        known = self.server.repos.get(repo)
        if known is None or (repo in self.server.private and not self.allowed()):
            self.answer_json({"error": "Repository Not Found"}, 401, X_Error_Code="RepoNotFound")
            return None
        for files, sha in known:
            if sha == revision:
                return files, sha
        if revision != "main":
            self.answer_json({"error": "Invalid rev"}, 404, X_Error_Code="RevisionNotFound")
            return None
        return known[-1]

    def allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.token}"

    def do_PUT(self) -> None:
        self.note()
        self.server.blobs[urlsplit(self.path).path.rpartition("/")[2]] = self.body()
        self.answer()

    def do_POST(self) -> None:
        self.note()
        body, path = self.body(), unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            self.answer_json({"errors": [], "warnings": []})
        elif not self.allowed():
            self.answer_json({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path.endswith("/info/lfs/objects/batch"):
            self.batch(json.loads(body))
        elif "/preupload/" in path:
            rows = json.loads(body)["files"]
            modes = ["lfs" if row["size"] >= self.server.big else "regular" for row in rows]
            named = [{"path": row["path"], "uploadMode": mode, "shouldIgnore": False} for row, mode in zip(rows, modes)]
            self.answer_json({"files": named})
        else:
            found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path)
            self.take(found[1], [json.loads(line) for line in body.splitlines()]) if found else self.answer(b"", 404)

    def create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if wanted.get("private"):
            self.server.private.add(repo)
        if repo in self.server.repos:
            self.answer_json({"error": "You already created this model repo", "url": f"/{repo}"}, 409)
            return
        self.server.repos[repo] = [({".gitattributes": b""}, "0" * 40)]
        self.answer_json({"url": f"{self.server.url}/{repo}", "name": repo, "id": "1"})

    def batch(self, wanted: dict[str, Any]) -> None:
        where = f"http://127.0.0.1:{self.server.server_address[1]}/lfs/"
        rows = [{**row, "actions": {"upload": {"href": where + row["oid"]}}} for row in wanted["objects"]]
        self.answer_json({"transfer": "basic", "objects": rows})

    def take(self, repo: str, lines: list[dict[str, Any]]) -> None:
        self.server.before_commit()
        files, sha = self.server.repos[repo][-1]
        if lines[0]["value"].get("parentCommit") not in (None, sha):
            self.answer_json({"error": "The branch has moved on"}, 412)
            return
        new = dict(files)
        for line in lines[1:]:
            value = line["value"]
            data = self.server.blobs[value["oid"]] if line["key"] == "lfsFile" else base64.b64decode(value["content"])
            new[value["path"]] = data
        sha = hashlib.sha1(repr(sorted(new.items())).encode()).hexdigest()
        self.server.repos[repo].append((new, sha))
        self.server.messages.append(lines[0]["value"]["summary"])
        self.answer_json({"commitUrl": f"{self.server.url}/{repo}/commit/{sha}", "commitOid": sha})


@contextmanager
def serving(handler: type[Handler], **state: Any) -> Iterator[Any]:
    """A server with attributes; `asked` lists every request, `sent` counts the bytes of all bodies."""
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    made.asked, made.sent, made.url = [], 0, f"http://127.0.0.1:{made.server_address[1]}"
    vars(made).update(state)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


@pytest.fixture
def web() -> Iterator[Any]:
    """A web server with `files` and a `fault`."""
    with serving(FileHandler, files={}, fault="") as server:
        yield server


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Hub with one empty repository, me/adapters, that the client's token may write to."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="the hub extra is not installed")
    repos = {"me/adapters": [({".gitattributes": b""}, "0" * 40)]}
    state: dict[str, Any] = {"repos": repos, "private": set(), "blobs": {}, "messages": []}
    with serving(HubHandler, token="hf_testtoken", big=10_000, before_commit=lambda: None, **state) as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    pytest.importorskip("s3fs", reason="the hub extra is not installed")
    server = pytest.importorskip("moto.server", reason="moto is not installed")
    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
    before = {name: os.environ.get(name) for name in (*keys, "AWS_ENDPOINT_URL")}
    made = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    made.start()
    url = "http://{}:{}".format(*made.get_host_and_port())
    os.environ.update(keys, AWS_ENDPOINT_URL=url)
    yield url
    made.stop()
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@pytest.fixture
def bucket(s3_server: str) -> str:
    import s3fs

    fs = s3fs.S3FileSystem()
    if not fs.exists("adapters"):
        fs.mkdir("adapters")
    for path in fs.find("adapters"):
        fs.rm_file(path)
    return "s3://adapters/vtab"
