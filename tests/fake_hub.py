"""A Hugging Face hub on 127.0.0.1: what huggingface_hub asks of it, kept in memory."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class FakeHub:
    """Repositories as branches of commits.

    Attributes:
        commits: Commit -> path -> bytes.
        owners: Commit -> name of its repository.
        repositories: Name -> branch -> commit.
        private: Names of those that are private.
        requests: Method and path of every request.
        messages: Messages of the commits.
        url: Its address.
    """

    def __init__(self):
        self.commits, self.owners, self.repositories = {}, {}, {}
        self.private, self.requests, self.messages = set(), [], []
        self.url = ""

    def commit(self, name, branch, changes, message=""):
        """Adds a commit to a branch; returns its hash."""
        branches = self.repositories.setdefault(name, {})
        files = {**self.commits.get(branches.get(branch), {}), **changes}
        sha = hashlib.sha1(f"{name}{len(self.commits)}".encode()).hexdigest()
        self.commits[sha], self.owners[sha], branches[branch] = files, name, sha
        self.messages.append(message)
        return sha

    def answer(self, method, path, body):
        """Returns status, headers and contents."""
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(*match.groups())
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in self.repositories:
                return 409, {}, {"error": "exists", "url": f"{self.url}/{name}"}
            # The second is what newer versions of the client send.
            if asked.get("private") or asked.get("visibility") == "private":
                self.private.add(name)
            self.commit(name, "main", {".gitattributes": b""})
            return 200, {}, {"url": f"{self.url}/{name}", "id": name}
        if path == "/api/validate-yaml":
            return 200, {}, {"errors": [], "warnings": []}
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)(?:/(.+))?)?", path)
        if not match or match[1] not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, {"error": "not found"}
        name, action, revision = match.groups()
        if action == "branch":
            self.repositories[name].setdefault(
                revision, self.repositories[name]["main"]
            )
            return 200, {}, {}
        sha = self._sha(name, unquote(revision or "main"))
        if sha is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, {"error": "no revision"}
        return 200, {}, getattr(self, f"_{action or 'revision'}")(name, revision, body)

    def _sha(self, name, revision):
        own = {
            sha: sha for sha, repository in self.owners.items() if repository == name
        }
        return (own | self.repositories.get(name, {})).get(revision)

    def _file(self, name, revision, path):
        sha = self._sha(name, unquote(revision))
        if sha is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, {"error": "no revision"}
        data = self.commits[sha].get(path)
        if data is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, {"error": "no file"}
        etag = hashlib.sha1(data).hexdigest()
        return 200, {"X-Repo-Commit": sha, "ETag": f'"{etag}"'}, data

    def _revision(self, name, revision, body):
        sha = self._sha(name, unquote(revision or "main"))
        files = [{"rfilename": path} for path in self.commits[sha]]
        private = name in self.private
        return {"id": name, "sha": sha, "private": private, "siblings": files}

    def _tree(self, name, revision, body):
        files = self.commits[self._sha(name, unquote(revision))]
        return [
            {
                "type": "file",
                "path": path,
                "size": len(data),
                "oid": hashlib.sha1(data).hexdigest(),
            }
            for path, data in files.items()
        ]

    def _preupload(self, name, revision, body):
        files = json.loads(body)["files"]
        return {
            "files": [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in files
            ]
        }

    def _commit(self, name, revision, body):
        lines = [json.loads(line) for line in body.splitlines()]
        changes = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        message = lines[0]["value"]["summary"]
        sha = self.commit(name, unquote(revision), changes, message)
        return {"commitUrl": f"{self.url}/{name}/commit/{sha}", "commitOid": sha}


@contextlib.contextmanager
def serve():
    """Yields a hub that answers at its `url`."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self):
            path = urlsplit(self.path).path
            hub.requests.append((self.command, path))
            body = self._body()
            status, headers, content = hub.answer(self.command, path, body)
            if not isinstance(content, bytes):
                content = json.dumps(content).encode()
                headers["Content-Type"] = "application/json"
            self.send_response(status)
            for name, value in {**headers, "Content-Length": len(content)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = respond

        def _body(self):
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
