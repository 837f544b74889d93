"""A small server that speaks the Hugging Face hub's protocol to its real client, with faults on request."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_right"
LFS_SUFFIXES = (".safetensors", ".bin", ".onnx")


@dataclass
class Repository:
    """The files of each revision; branches and tags name a revision too."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Adds a revision with these files, and moves the branch to it."""
        text = json.dumps([[name, hashlib.sha256(files[name]).hexdigest()] for name in sorted(files)])
        commit = hashlib.sha1(f"{len(self.commits)}{text}".encode()).hexdigest()
        self.commits[commit] = files
        self.refs[branch] = commit
        return commit


@dataclass
class Hub:
    """The state of the server. A fault is a function of a request's handler that answers it; True says that it did."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range
    blobs: dict[str, bytes] = field(default_factory=dict)  # uploaded, by SHA-256
    role: str = "write"  # of the token
    fault: Any = None
    released: threading.Event = field(default_factory=threading.Event)  # ends what hangs

    def count(self, method: str, part: str = "") -> int:
        return sum(part in path and method == each for each, path, _ in self.requests)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, document: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def answer_error(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        self.answer(status, b"", {"X-Error-Code": code, "X-Error-Message": message, **headers})

    def handle_request(self) -> None:
        self.body = self.read_body()
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.fault is not None and self.hub.fault(self, path):
            return
        token = self.headers.get("Authorization")
        if token not in (None, f"Bearer {TOKEN}"):
            self.answer_error(401, message="Invalid credentials in Authorization header")
        elif path == "/api/whoami-v2":
            access = {"accessToken": {"role": self.hub.role}}
            self.answer_json({"name": "me", "type": "user", "orgs": [{"name": "team"}], "auth": access})
        elif self.command in ("POST", "PUT"):
            self.write(path)
        else:
            self.read(path, has_token=token is not None)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    # Reading

    def read(self, path: str, has_token: bool) -> None:
        is_api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models/").strip("/").split("/", 3)
        repository = self.hub.repositories.get("/".join(parts[:2]))
        if repository is None or (repository.private and not has_token):
            return self.answer_error(401 if not has_token else 404, "RepoNotFound")
        if repository.gated and not is_api and not has_token:  # whose files are listed for everyone
            return self.answer_error(401, "GatedRepo")
        if is_api:
            revision = "/".join(parts[3:]) or "main"
            return self.list_files("/".join(parts[:2]), repository, revision)
        revision, _, name = parts[3].partition("/")
        commit = repository.refs.get(revision, revision)
        content = repository.commits.get(commit, {}).get(name)
        if content is None:
            code = "EntryNotFound" if commit in repository.commits else "RevisionNotFound"
            return self.answer(404, b"", {"X-Error-Code": code, "X-Repo-Commit": commit})
        return self.send_file(content, {"X-Repo-Commit": commit, "ETag": f'"{blob_id(name, content)}"'})

    def list_files(self, name: str, repository: Repository, revision: str) -> None:
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            return self.answer_error(404, "RevisionNotFound")
        siblings = []
        for file, content in repository.commits[commit].items():
            lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            listed = {"rfilename": file, "size": len(content), "blobId": git_blob_id(content)}
            siblings.append({**listed, "lfs": lfs} if file.endswith(LFS_SUFFIXES) else listed)
        return self.answer_json({"_id": "1", "id": name, "modelId": name, "sha": commit, "siblings": siblings})

    def send_file(self, content: bytes, headers: dict[str, str], limit: int | None = None) -> None:
        """Sends a file, or the part that Range asks for; with a `limit`, cuts the connection after so many bytes."""
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        part = content[start:]
        self.send_response(206 if "Range" in self.headers else 200)
        if "Range" in self.headers:
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        for name, value in {**headers, "Content-Length": str(len(part)), "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(part if limit is None else part[:limit])
        if limit is not None and limit < len(part):
            self.wfile.flush()
            self.close_connection = True

    # Writing

    def write(self, path: str) -> None:
        if self.hub.role != "write":
            return self.answer_error(403, message="this token may not write")
        if path == "/api/repos/create":
            document = json.loads(self.body)
            name = f"{document.get('organization') or 'me'}/{document['name']}"
            exists = name in self.hub.repositories
            private = bool(document.get("private")) or document.get("visibility") == "private"
            self.hub.repositories.setdefault(name, Repository(private=private))
            if not exists:
                self.hub.repositories[name].commit({".gitattributes": b""})
            return self.answer_json({"url": f"{self.hub.url}/{name}"}, 409 if exists else 200)
        if path == "/api/validate-yaml":
            return self.answer_json({"errors": [], "warnings": []})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}}
                for each in json.loads(self.body)["objects"]
            ]
            return self.answer_json({"transfer": "basic", "objects": objects})
        if path.startswith("/lfs/"):
            self.hub.blobs[path.removeprefix("/lfs/")] = self.body
            return self.answer(200)
        parts = path.removeprefix("/api/models/").split("/")
        name = "/".join(parts[:2])
        if parts[2] == "preupload":
            files = [
                {"path": each["path"], "shouldIgnore": False, "oid": None,
                 "uploadMode": "lfs" if each["path"].endswith(LFS_SUFFIXES) else "regular"}
                for each in json.loads(self.body)["files"]
            ]  # fmt: skip
            return self.answer_json({"files": files})
        return self.write_commit(self.hub.repositories[name])

    def write_commit(self, repository: Repository) -> None:
        files = dict(repository.commits[repository.refs["main"]])
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        commit = repository.commit(files)
        self.answer_json(
            {
                "success": True,
                "commitOid": commit,
                "commitUrl": f"{self.hub.url}/me/x/commit/{commit}",
                "hookOutput": "",
            }
        )


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def blob_id(name: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if name.endswith(LFS_SUFFIXES) else git_blob_id(content)


def hang(handler: Handler) -> None:
    """Sends nothing more until the test ends."""
    handler.hub.released.wait(30)
    handler.close_connection = True


@contextmanager
def run_hub() -> Iterator[Hub]:
    """Runs a hub on a free port."""
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield hub
        finally:
            hub.released.set()
            server.shutdown()


def use_hub(hub: Hub, cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points the client of this process, which reads its environment when it is imported, to a hub and a cache."""
    import huggingface_hub.constants as constants
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_URL_HOSTS", frozenset({"127.0.0.1"}), raising=False)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)  # 0.30 has a copy
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache) + "-token")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)  # between the client's tries
    monkeypatch.delenv("HF_TOKEN", raising=False)
