# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""A small Hub on 127.0.0.1, for the real huggingface_hub client to push to and load from.

It holds repositories in memory, of models or, to be read alone, of data sets, and speaks, of the Hub's HTTP
interface, what the client (1.31 to 2.4) uses with `HF_HUB_DISABLE_XET=1`: whoami, creating repositories and branches,
preupload, Git LFS (batch, upload and verify, in single parts), commits as ndjson, model info, references, file trees
in pages, and downloads with ETag, commit and range. Files in LFS are served by redirects to another host name, as the
Hub does with its storage.

    with LoopbackHub() as hub:
        subprocess.run([...], env=hub.environment(cache_dir, token="hf_alice"))

The client reads these variables when it is imported, so that it has to run in a process of its own. Not here: Xet,
multi-part uploads, pull requests, Spaces, and limits on sizes and rates.
"""

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKENS = {"hf_alice": ("alice", "write"), "hf_alice_read": ("alice", "read"), "hf_bob": ("bob", "write")}
LFS_PATTERNS = ("*.safetensors", "*.bin", "*.pth")
KIND = "(models|datasets)"
REPO, REVISION = r"(?P<repo>[\w.-]+/[\w.-]+)", r"(?P<revision>[^/]+)"


class Refused(Exception):
    """An error response."""

    def __init__(self, status: int, message: str, code: str | None = None, body: dict | None = None, **headers: str):
        super().__init__(message)
        self.status, self.body = status, body or {"error": message}
        # The client tells its kinds of errors apart by these headers.
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


@dataclass(frozen=True)
class File:
    """A file in a commit: its content, and the SHA-256 of it where LFS holds it."""

    content: bytes
    sha256: str | None = None

    @property
    def oid(self) -> str:
        """Git's SHA-1, of LFS's pointer where there is one."""
        content = self.content
        if self.sha256:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(content)}\n"
            content = pointer.encode()
        return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()

    def describe(self, path: str) -> dict:
        """An entry of a tree listing."""
        lfs = {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}
        entry = {"type": "file", "path": path, "oid": self.oid, "size": len(self.content)}
        return entry | ({"lfs": lfs} if self.sha256 else {})


@dataclass
class Commit:
    """A state of a repository: its files by path, the commit before, and the paths that were sent with this one."""

    title: str
    files: dict[str, File]
    parent: str | None = None
    sent: tuple[str, ...] = ()

    @property
    def sha(self) -> str:
        listing = [f"{path} {file.oid}" for path, file in sorted(self.files.items())]
        return hashlib.sha1("\n".join([self.title, str(self.parent), *listing]).encode()).hexdigest()


@dataclass
class Repository:
    """A model's commits by their SHA, and the newest of each branch."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, commit: Commit) -> str:
        self.commits[commit.sha] = commit
        self.branches[branch] = commit.sha
        return commit.sha

    def edit(self, path: str, content: bytes) -> None:
        """Commits one file to main, as in the Hub's editor."""
        parent = self.branches["main"]
        files = {**self.commits[parent].files, path: File(content)}
        self.add("main", Commit(f"Update {path}", files, parent, (path,)))

    def resolve(self, revision: str) -> str:
        """The commit that a branch or (possibly shortened) SHA means."""
        if revision in self.branches:
            return self.branches[revision]
        for sha in self.commits:
            if len(revision) >= 7 and sha.startswith(revision):
                return sha
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, branch: str = "main") -> list[Commit]:
        """The commits of a branch, the newest first."""
        sha, commits = self.branches[branch], []
        while sha:
            commits.append(self.commits[sha])
            sha = commits[-1].parent
        return commits

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Contents by path."""
        return {path: file.content for path, file in self.commits[self.resolve(revision)].files.items()}


@dataclass
class Fault:
    """Requests to spoil: after `skip` others, `times` of them, with a status, or None to break the connection."""

    method: str
    pattern: str
    status: int | None
    skip: int
    times: int


class LoopbackHub:
    """The server, a context manager, and what it holds.

    Attributes:
        tokens: user and role by token.
        repositories: by their id, `owner/name`.
        objects: contents in LFS by SHA-256, whether a commit refers to them or not.
        requests: all that was asked, as `"METHOD /path"`, without queries.
        unknown: those of the requests that this server has no answer to.
        page_size: entries of a tree listing that come at once.
    """

    def __init__(self):
        self.clear()
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.storage_url = f"http://localhost:{self.server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def clear(self) -> None:
        """Makes the Hub a new one."""
        self.tokens = TOKENS
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.faults: list[Fault] = []
        self.page_size = 1000

    def environment(self, home: os.PathLike, token: str | None = None) -> dict[str, str]:
        """The environment variables of a process that uses this Hub, with the caches below `home`."""
        variables = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        variables |= {
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(home),
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return variables | ({"HF_TOKEN": token} if token else {})

    def fail(self, method: str, pattern: str, status: int | None, skip: int = 0, times: int = 10**6) -> None:
        """Has requests whose path matches `pattern` fail: with `status`, or None to break the connection."""
        self.faults.append(Fault(method, pattern, status, skip, times))

    def find_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method == method and re.search(fault.pattern, path):
                    if fault.skip > 0:
                        fault.skip -= 1
                    elif fault.times > 0:
                        fault.times -= 1
                        return fault
        return None

    def count(self, method: str, pattern: str) -> int:
        """The number of requests so far whose path matches `pattern`."""
        return sum(bool(re.search(pattern, path)) for verb, path in map(str.split, self.requests) if verb == method)


class Handler(BaseHTTPRequestHandler):
    """Answers one request after the other of a connection."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        """Keeps quiet."""

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        self.hub.requests.append(f"{self.command} {url.path}")
        length = int(self.headers.get("Content-Length", 0))
        fault = self.hub.find_fault(self.command, url.path)
        if fault and fault.status is None:
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        self.body = self.rfile.read(length)
        try:
            if fault:
                raise Refused(fault.status, "Internal error, as the test wants it")
            with self.hub.lock:
                self.route(url.path)
        except Refused as error:
            self.reply(error.body, error.status, **error.headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def route(self, path: str) -> None:
        method = "GET" if self.command == "HEAD" else self.command
        for route_method, pattern, answer in ROUTES:
            if method == route_method and (match := re.fullmatch(pattern, path)):
                names = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                return answer(self, **names)
        self.hub.unknown.append(f"{self.command} {path}")
        raise Refused(404, f"{self.command} {path} is not in this Hub")

    def reply(self, body: dict | list | bytes = b"", status: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def user(self) -> tuple[str | None, str | None]:
        """Name and role of the one who asks; None of one who has no token."""
        header = self.headers.get("Authorization")
        if header is None:
            return None, None
        if (token := header.removeprefix("Bearer ")) not in self.hub.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    def repository(self, repo: str, write: bool = False) -> Repository:
        """A repository, if the one who asks may read, or write, it."""
        name, role = self.user()
        repository = self.hub.repositories.get(repo)
        is_owner = name == repo.split("/")[0]
        if repository is None or (repository.private and not is_owner):
            # Not to be told apart, so that no one learns of private repositories.
            raise Refused(404 if name else 401, "Repository not found", "RepoNotFound")
        if repository.gated and not is_owner:
            raise Refused(403 if name else 401, f"Access to model {repo} is restricted", "GatedRepo")
        if write and name is None:
            raise Refused(401, "Invalid username or password.")
        if write and not (is_owner and role != "read"):
            raise Refused(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repository

    # The routes.

    def whoami(self) -> None:
        name, role = self.user()
        if name is None:
            raise Refused(401, "Invalid username or password.")
        auth = {"type": "access_token", "accessToken": {"displayName": "token", "role": role}}
        self.reply({"type": "user", "name": name, "orgs": [], "auth": auth})

    def validate_yaml(self) -> None:
        if not json.loads(self.body)["content"].startswith("---\n"):
            warning = {"message": "empty or missing yaml metadata in repo card"}
            return self.reply({"errors": [], "warnings": [warning]})
        self.reply({"errors": [], "warnings": []})

    def create_repo(self) -> None:
        name, role = self.user()
        asked = json.loads(self.body)
        owner = asked.get("organization") or name
        repo = f"{owner}/{asked['name']}"
        if name != owner or role == "read":
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        answer = {"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo}
        if repo in self.hub.repositories:
            raise Refused(409, "You already created this model repo", body=answer)
        repository = Repository(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)
        repository.add("main", Commit("initial commit", {".gitattributes": File(attributes.encode())}))
        self.hub.repositories[repo] = repository
        self.reply(answer)

    def model_info(self, repo: str, revision: str = "main") -> None:
        repository = self.repository(repo)
        sha = repository.resolve(revision)
        siblings = [{"rfilename": path} for path in sorted(repository.commits[sha].files)]
        facts = {"private": repository.private, "gated": repository.gated, "disabled": False, "tags": []}
        self.reply({"id": repo, "modelId": repo, "sha": sha, "siblings": siblings, **facts})

    def refs(self, repo: str) -> None:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
            for name, sha in self.repository(repo).branches.items()
        ]
        self.reply({"branches": branches, "tags": [], "converts": []})

    def create_branch(self, repo: str, revision: str) -> None:
        repository = self.repository(repo, write=True)
        if revision in repository.branches:
            raise Refused(409, "Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repository.branches[revision] = repository.resolve(start)
        self.reply({})

    def tree(self, repo: str, revision: str, folder: str = "") -> None:
        repository = self.repository(repo)
        files = repository.commits[repository.resolve(revision)].files
        recursive = self.query.get("recursive", "").lower() in ("true", "1")
        entries: dict[str, dict] = {}
        for path, file in sorted(files.items()):
            inside = path.removeprefix(f"{folder}/") if folder else path
            if folder and inside == path:
                continue
            *folders, _ = inside.split("/")
            for depth in range(1, (len(folders) if recursive else min(len(folders), 1)) + 1):
                name = "/".join(filter(None, (folder, *folders[:depth])))
                entries[name] = {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(),
                                 "size": 0}  # fmt: skip
            if recursive or not folders:
                entries[path] = file.describe(path)
        if folder and not entries:
            raise Refused(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        first = int(self.query.get("cursor", 0))
        last = first + self.hub.page_size
        url = f"{self.hub.url}{urlsplit(self.path).path}?recursive={recursive}&cursor={last}"
        link = {"Link": f'<{url}>; rel="next"'} if last < len(entries) else {}
        self.reply(list(entries.values())[first:last], **link)

    def paths_info(self, repo: str, revision: str) -> None:
        repository = self.repository(repo)
        files = repository.commits[repository.resolve(revision)].files
        paths = parse_qs(self.body.decode()).get("paths", [])
        self.reply([files[path].describe(path) for path in paths if path in files])

    def preupload(self, repo: str, revision: str) -> None:
        repository = self.repository(repo, write=True)
        files = repository.commits[repository.resolve(revision)].files
        answers = []
        for asked in json.loads(self.body)["files"]:
            present = files.get(asked["path"])
            binary = b"\0" in base64.b64decode(asked["sample"])
            lfs = binary or any(fnmatch(asked["path"], pattern) for pattern in LFS_PATTERNS)
            answer = {"path": asked["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            answers.append(answer | ({"oid": present.sha256 or present.oid} if present else {}))
        self.reply({"files": answers})

    def lfs_batch(self, repo: str) -> None:
        self.repository(repo, write=True)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.storage_url}/storage/{asked['oid']}", "header": {}},
                "verify": {"href": f"{self.hub.url}/{repo}.git/info/lfs/verify", "header": {}},
            }
            known = asked["oid"] in self.hub.objects
            objects.append({"oid": asked["oid"], "size": asked["size"], **({} if known else {"actions": actions})})
        self.reply({"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "The content has another SHA-256")
        self.hub.objects[oid] = self.body
        self.reply()

    def lfs_verify(self, repo: str) -> None:
        self.repository(repo, write=True)
        asked = json.loads(self.body)
        if len(self.hub.objects.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, f"No object {asked['oid']} of {asked['size']} bytes")
        self.reply({})

    def commit(self, repo: str, revision: str) -> None:
        repository = self.repository(repo, write=True)
        if revision not in repository.branches:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        parent = repository.branches[revision]
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        if header["value"].get("parentCommit", parent) != parent:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.commits[parent].files)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]))
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refused(400, f"LFS pointer of {value['path']} points to a file that does not exist")
                files[value["path"]] = File(self.hub.objects[value["oid"]], value["oid"])
            elif operation["key"] == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                raise Refused(400, f"{operation['key']} is not in this Hub")
        sent = tuple(operation["value"]["path"] for operation in operations)
        sha = repository.add(revision, Commit(header["value"]["summary"], files, parent, sent))
        self.reply({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"})

    def resolve(self, repo: str, revision: str, path: str) -> None:
        repository = self.repository(repo)
        sha = repository.resolve(revision)
        commit = {"X-Repo-Commit": sha}
        file = repository.commits[sha].files.get(path)
        if file is None:
            raise Refused(404, "Entry not found", "EntryNotFound", **commit)
        if file.sha256 is None:
            return self.send_file(file.content, ETag=f'"{file.oid}"', **commit)
        linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        location = {"Location": f"{self.hub.storage_url}/storage/{file.sha256}"}
        self.reply(b"", 302, ETag=f'"{file.oid}"', **commit, **linked, **location)

    def storage(self, oid: str) -> None:
        # Links to storage are signed by themselves; a token there is one that has leaked to a foreign host.
        if self.headers.get("Authorization"):
            raise Refused(400, "Only one way to sign a request is allowed")
        self.send_file(self.hub.objects[oid], ETag=f'"{oid}"')

    def send_file(self, content: bytes, **headers: str) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self.reply(content, **headers, **{"Accept-Ranges": "bytes"})
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        if first > last:
            raise Refused(416, "Range not satisfiable", **{"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.reply(content[first : last + 1], 206, **headers)


ROUTES = (
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", "/api/repos/create", Handler.create_repo),
    ("GET", f"/api/{KIND}/{REPO}(/revision/{REVISION})?", Handler.model_info),
    ("GET", f"/api/models/{REPO}/refs", Handler.refs),
    ("POST", f"/api/models/{REPO}/branch/{REVISION}", Handler.create_branch),
    ("GET", f"/api/{KIND}/{REPO}/tree/{REVISION}(/(?P<folder>.+))?", Handler.tree),
    ("POST", f"/api/{KIND}/{REPO}/paths-info/{REVISION}", Handler.paths_info),
    ("POST", f"/api/models/{REPO}/preupload/{REVISION}", Handler.preupload),
    ("POST", f"/api/models/{REPO}/commit/{REVISION}", Handler.commit),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("POST", rf"/{REPO}\.git/info/lfs/verify", Handler.lfs_verify),
    ("PUT", "/storage/(?P<oid>[0-9a-f]{64})", Handler.lfs_upload),
    ("GET", "/storage/(?P<oid>[0-9a-f]{64})", Handler.storage),
    ("GET", f"(/datasets)?/{REPO}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
)
