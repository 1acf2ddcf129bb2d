"""A Hub on this machine: as much of its HTTP interface as the client needs to create, fill, list and read models.

Two users exist, by token. A commit is applied as a whole or not at all, as on the Hub.
"""

import base64
import hashlib
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

USERS = {"hf_alice": "alice", "hf_bob": "bob"}
LARGE = (".safetensors", ".png")


@dataclass
class Repository:
    private: bool
    commits: list = field(default_factory=list)  # (oid, files by path)

    @property
    def head(self):
        return self.commits[-1] if self.commits else ("0" * 40, {})

    def at(self, revision):
        return next((c for c in [self.head, *self.commits] if revision in ("main", c[0])), None)


class Hub(ThreadingHTTPServer):
    """The state of the server.

    Attributes:
        repositories: By id.
        blobs: Large files by their SHA-256.
        cut_uploads: Break the connection in the middle of every large file that comes.
        cut_downloads: Likewise for those that go.
        requests: Method and path of everything that was asked.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.blobs, self.requests = {}, {}, []
        self.cut_uploads = self.cut_downloads = False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Broken connections are what some tests want."""


@contextmanager
def running_hub():
    hub = Hub()
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class RefusalError(Exception):
    def __init__(self, status, code="", message=""):
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    routes = []

    def log_message(self, *args):
        pass

    def handle_method(self):
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        path = unquote(url.path)
        self.server.requests.append((self.command, path))
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for wanted, pattern, run in self.routes:
                match = re.fullmatch(pattern, path)
                if wanted == method and match:
                    return run(self, *match.groups())
            raise RefusalError(404, "EntryNotFound", f"no route {method} {path}")
        except RefusalError as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self.reply({"error": refusal.message}, refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_method  # noqa: N815  names of the standard library

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def reply(self, data, status=200, headers=None):
        content = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in (
            {"Content-Length": str(len(content))} | {k: v for k, v in (headers or {}).items() if v}
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def user(self):
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in USERS:
            raise RefusalError(401, message="Invalid credentials in Authorization header")
        return USERS.get(token)

    def repository(self, name, write=False):
        found, user = self.server.repositories.get(name), self.user()
        if found is None or (found.private and user != name.partition("/")[0]):
            raise RefusalError(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and user != name.partition("/")[0]:
            raise RefusalError(403, message="You have no right to write here")
        return found


def route(method, pattern):
    def register(run):
        Handler.routes.append((method, pattern, run))
        return run

    return register


NAME = r"([\w.-]+/[\w.-]+)"


@route("GET", "/api/whoami-v2")
def whoami(request):
    if request.user() is None:
        raise RefusalError(401, message="Invalid credentials in Authorization header")
    request.reply({"type": "user", "name": request.user(), "orgs": [], "auth": {"accessToken": {"role": "write"}}})


@route("POST", "/api/repos/create")
def create(request):
    asked, user = json.loads(request.body()), request.user()
    owner = asked.get("organization") or user
    if user is None or owner != user:
        raise RefusalError(403, message=f"You have no right to create a model of {owner}")
    name = f"{owner}/{asked['name']}"
    url = {"url": f"{request.server.url}/{name}"}
    if name in request.server.repositories:
        return request.reply(url, 409)
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    request.server.repositories[name] = Repository(private)
    return request.reply(url)


@route("POST", "/api/validate-yaml")
def validate_yaml(request):
    request.body()
    request.reply({"errors": [], "warnings": []})


@route("POST", f"/api/models/{NAME}/preupload/(.+)")
def preupload(request, name, revision):
    request.repository(name, write=True)
    paths = [file["path"] for file in json.loads(request.body())["files"]]
    modes = [
        {"path": p, "uploadMode": "lfs" if p.endswith(LARGE) else "regular", "shouldIgnore": False} for p in paths
    ]
    request.reply({"files": modes})


@route("POST", f"/{NAME}.git/info/lfs/objects/batch")
def lfs_batch(request, name):
    request.repository(name, write=True)
    objects = []
    for asked in json.loads(request.body())["objects"]:
        known = asked["oid"] in request.server.blobs
        actions = {} if known else {"actions": {"upload": {"href": f"{request.server.url}/lfs/{asked['oid']}"}}}
        objects.append(asked | actions)
    request.reply({"transfer": "basic", "objects": objects})


@route("PUT", "/lfs/([0-9a-f]{64})")
def lfs_upload(request, oid):
    length = int(request.headers["Content-Length"])
    if request.server.cut_uploads:
        request.rfile.read(length // 2)
        request.close_connection = True
        return request.connection.shutdown(2)
    content = request.rfile.read(length)
    if hashlib.sha256(content).hexdigest() != oid:
        raise RefusalError(400, message="The content is not what was announced")
    request.server.blobs[oid] = content
    return request.reply({})


@route("POST", f"/api/models/{NAME}/commit/(.+)")
def commit(request, name, revision):
    repository = request.repository(name, write=True)
    files = dict(repository.head[1])
    for line in request.body().splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif item["key"] == "lfsFile":
            files[value["path"]] = request.server.blobs[value["oid"]]
        elif item["key"] != "header":
            raise RefusalError(400, message=f"unknown operation {item['key']}")
    oid = hashlib.sha1(b"".join(path.encode() + content for path, content in sorted(files.items()))).hexdigest()
    repository.commits.append((oid, files))
    request.reply({"success": True, "commitOid": oid, "commitUrl": f"{request.server.url}/{name}/commit/{oid}"})


@route("GET", f"/api/models/{NAME}(?:/revision/([^/]+))?")
def model_info(request, name, revision):
    repository = request.repository(name)
    oid, files = repository.at(revision or "main")
    siblings = [{"rfilename": path} for path in sorted(files)]
    request.reply({"_id": name, "id": name, "sha": oid, "private": repository.private, "siblings": siblings})


@route("GET", f"/api/models/{NAME}/tree/([^/]+)(?:/.*)?")
def tree(request, name, revision):
    _, files = request.repository(name).at(revision)
    sizes = [{"type": "file", "path": path, "size": len(c), "oid": _etag(c)} for path, c in sorted(files.items())]
    request.reply(sizes)


@route("GET", f"/{NAME}/resolve/([^/]+)/(.+)")
def resolve(request, name, revision, path):
    found = request.repository(name).at(revision)
    if found is None:
        raise RefusalError(404, "RevisionNotFound", "Invalid rev id")
    oid, files = found
    if path not in files:
        raise RefusalError(404, "EntryNotFound", "Entry not found")
    content = files[path]
    headers = {"X-Repo-Commit": oid, "ETag": f'"{_etag(content)}"', "Accept-Ranges": "bytes"}
    if request.server.cut_downloads and path.endswith(LARGE) and request.command == "GET":
        request.send_response(200)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            request.send_header(key, value)
        request.end_headers()
        request.wfile.write(content[: len(content) // 2])
        request.wfile.flush()
        request.close_connection = True
        return request.connection.shutdown(2)
    return request.reply(content, headers=headers)


@route("POST", "/control")
def control(request):
    """Of the tests, from another process."""
    vars(request.server).update(json.loads(request.body()))
    request.reply({})


def _etag(content):
    return hashlib.sha256(content).hexdigest()
