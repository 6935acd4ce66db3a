"""A small Hub on loopback: what the real client says to it, it answers as the real one does. Folders to publish."""

import base64
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from cardiodit import CardioDiTPipeline
from cardiodit._util.hashing import sha256_of
from cardiodit.hub.card.owner_facts import read_facts
from cardiodit.hub.card.previews import copy_previews
from cardiodit.hub.model_card import write_card


@dataclass
class Commit:
    oid: str
    files: dict[str, bytes]


@dataclass
class Repository:
    private: bool = False
    gated: str | bool = False
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.commits[-1]
        oid = self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit.oid == oid), None)

    def add(self, files: dict[str, bytes]) -> Commit:
        content = repr(sorted((name, hashlib.sha256(data).hexdigest()) for name, data in files.items()))
        self.commits.append(Commit(hashlib.sha1(f"{len(self.commits)}{content}".encode()).hexdigest(), files))
        return self.commits[-1]


class Hub(ThreadingHTTPServer):
    """Repositories, commits and large files in memory. `cut` breaks off the next download of `org/name/file` once."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.ranges: list[str] = []
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, body: Any, status: int = 200, **headers: str) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def not_found(self, code: str) -> None:
        self.answer({"error": code}, 404, X_Error_Code=code, X_Error_Message=code)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        for pattern, handle in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                getattr(self, handle)(*match.groups())
                return
        self.not_found("EntryNotFound")

    do_GET = do_POST = do_PUT = do_HEAD = route  # noqa: N815  the names that http.server looks for

    def create(self) -> None:
        request = json.loads(self.body())
        name = f"{request.get('organization') or 'lab'}/{request['name']}"
        is_new = name not in self.server.repositories
        if is_new:
            is_private = request.get("private", False) or request.get("visibility") == "private"  # older, newer clients
            self.server.repositories[name] = Repository(is_private)
            self.server.repositories[name].add({".gitattributes": b""})
        self.answer({"url": f"{self.server.url}/{name}", "name": name, "id": name}, 200 if is_new else 409)

    def settings(self, name: str) -> None:
        self.server.repositories[name].gated = json.loads(self.body()).get("gated", False)
        self.answer({})

    def validate(self) -> None:
        self.body()
        self.answer({"errors": [], "warnings": []})

    def whoami(self) -> None:
        self.answer({"name": "lab", "type": "user", "orgs": [], "auth": {"type": "access_token"}})

    def preupload(self, name: str, revision: str) -> None:
        files = json.loads(self.body())["files"]
        mode = {True: "lfs", False: "regular"}
        self.answer(
            {
                "files": [
                    {"path": f["path"], "uploadMode": mode[f["path"].endswith(".safetensors")], "shouldIgnore": False}
                    for f in files
                ]
            }
        )

    def batch(self, name: str) -> None:
        wanted = json.loads(self.body())["objects"]
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.server.url}/upload/{o['oid']}"}}}
            if o["oid"] not in self.server.large
            else o
            for o in wanted
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        content = self.body()
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.large[oid] = content
        self.answer({})

    def commit(self, name: str, revision: str) -> None:
        repository = self.server.repositories[name]
        files = dict(repository.commits[-1].files)
        for line in self.body().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif item["key"] == "deletedFile":
                files.pop(value["path"])
        oid = repository.add(files).oid
        url = f"{self.server.url}/{name}/commit/{oid}"
        self.answer({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def tag(self, name: str, revision: str) -> None:
        request = json.loads(self.body())
        self.server.repositories[name].tags[request["tag"]] = self.server.repositories[name].at(revision).oid
        self.answer({})

    def info(self, name: str, _: str | None, revision: str | None) -> None:
        repository = self.server.repositories.get(name)
        if repository is None:
            self.not_found("RepoNotFound")
            return
        commit = repository.at(revision or "main")
        if commit is None:
            self.not_found("RevisionNotFound")
            return
        siblings = [{"rfilename": path, "size": len(data)} for path, data in commit.files.items()]
        self.answer(
            {
                "id": name,
                "modelId": name,
                "sha": commit.oid,
                "siblings": siblings,
                "tags": [],
                "private": repository.private,
            }
        )

    def tree(self, name: str, revision: str) -> None:
        commit = self.server.repositories[name].at(revision)
        files = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in commit.files.items()
        ]
        self.answer(files)

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository = self.server.repositories.get(name)
        commit = None if repository is None else repository.at(revision)
        if commit is None:
            self.not_found("RepoNotFound" if repository is None else "RevisionNotFound")
            return
        if path not in commit.files:
            self.answer({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit.oid)
            return
        content = commit.files[path]
        start = 0
        if asked := self.headers.get("Range"):
            self.server.ranges.append(f"{name}/{path} {asked}")
            start = int(re.match(r"bytes=(\d+)-", asked).group(1))
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit.oid)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        rest = content[start:]
        if f"{name}/{path}" in self.server.cut:
            self.server.cut.discard(f"{name}/{path}")
            self.wfile.write(rest[: len(rest) // 2])
            self.close_connection = True
            return
        self.wfile.write(rest)


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (r"GET /api/whoami-v2", "whoami"),
    (rf"PUT /api/models/{NAME}/settings", "settings"),
    (rf"POST /api/models/{NAME}/preupload/(.+)", "preupload"),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /upload/(\w+)", "upload"),
    (rf"POST /api/models/{NAME}/commit/(.+)", "commit"),
    (rf"POST /api/models/{NAME}/tag/(.+)", "tag"),
    (rf"GET /api/models/{NAME}(/revision/(.+))?", "info"),
    (rf"GET /api/models/{NAME}/tree/([^/]+).*", "tree"),
    (rf"(?:GET|HEAD) /{NAME}/resolve/([^/]+)/(.+)", "resolve"),
]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


SAVED_MODEL = Path(__file__).parents[1] / "fixtures" / "saved" / "cardiodit-0.1"
FACTS = """
name: Small hearts
repository: lab/hearts
license: cc-by-nc-4.0
datasets: [lab/cines, "the register of 1999"]
cohort: 40 volunteers, one volume each.
consent: Written consent; approved as 12-345.
scanners: One 1.5 T scanner.
lacks: Everybody who is ill.
evaluation: Against 8 real volumes.
metrics: [{name: FID (real to real 3.1), value: 12.5, dataset: lab/cines, type: fid}]
memorization: No sample is nearer to a training volume than another real one is.
country: Iceland
carbon_intensity: 28
contact: hearts@example.org
"""


def write_run(folder: Path, stage: str, **changes: Any) -> Path:
    """A run folder as training leaves it, without its weights."""
    session = {
        "began": "2026-11-21T07:57:40+00:00",
        "versions": {"cardiodit": "0.1.0", "torch": "2.13.0"},
        "python": "3.11.7",
        "hardware": "NVIDIA H100",
        "processes": 2,
        "distribution": "MULTI_GPU",
        "mixed_precision": "bf16",
        "seconds": 9000.0,
        "last_step": 600,
        "energy_kwh": 1.25,
        "energy_method": "GPU's counter",
    }
    record = {
        "stage": stage,
        "began": "2026-11-21T07:57:40+00:00",
        "data": {"training_data": "3fbeeb8fb851b911ec1dc7eac60e8a91"},
        "sessions": [session, {**session, "last_step": 1000}],
        "seed": 7,
        "samples": 32,
        "samples_a_step": 4,
        "status": "finished",
        "ended": "2026-11-22T07:57:48+00:00",
    }
    weights = "vae" if stage == "train_vqgan" else "transformer"
    file = f"{weights}/diffusion_pytorch_model.safetensors"
    hashes = {file: sha256_of(SAVED_MODEL / file)}
    best = {"step": 800, "measure": "validation_loss", "value": 0.123456, "files": hashes}
    (folder / "best").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({**record, **changes}))
    (folder / "config.yaml").write_text("model: {num_layers: 2}\ndata: {cache_dir: /home/jane/cache, workers: 1}\n")
    (folder / "best" / "state.json").write_text(json.dumps(best))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small pipeline folder without a card."""
    return Path(shutil.copytree(SAVED_MODEL, tmp_path / "model"))


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [write_run(tmp_path / "runs" / name, f"train_{name}") for name in ("vqgan", "dit")]


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    (tmp_path / "facts.yaml").write_text(FACTS)
    return tmp_path / "facts.yaml"


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five samples of the small pipeline."""
    folder = tmp_path_factory.mktemp("samples")
    pipe = CardioDiTPipeline.from_pretrained(SAVED_MODEL)
    pipe.set_progress_bar_config(disable=True)
    pipe(num_samples=5, num_inference_steps=2, seed=3, class_labels="ill").save(folder)
    return folder


@pytest.fixture
def complete(model: Path, runs: list[Path], facts: Path, samples: Path) -> Path:
    """A pipeline folder with a complete card and previews."""
    copy_previews(samples, model)
    assert write_card(model, runs, read_facts(facts)) == []
    return model
