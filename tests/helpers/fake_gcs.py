"""A Google Cloud Storage server on loopback, with objects in memory and faults on request.

It answers what gcsfs, google-cloud-storage and TensorStore's GCS driver ask of the JSON API. The
emulators on PyPI keep no generations of objects, without which TensorStore refuses to write.
"""

import base64
import hashlib
import http.server
import itertools
import json
import os
import re
import threading
import urllib.parse
import uuid
from collections.abc import Callable

import pytest

ENVIRONMENT = {  # of a process that talks to the server
  "STORAGE_EMULATOR_HOST": "http://127.0.0.1:{port}",
  "TENSORSTORE_GCS_HTTP_URL": "http://127.0.0.1:{port}",
  "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
  "NO_GCE_CHECK": "true",
  "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask Google what kind of bucket it is
}
DROP = -1  # as the answer of a fault: the connection is closed without a word


class Server:
  """The server; `objects` is {(bucket, name): (content, generation)}.

  Attributes:
    fault: function (method, path) -> None, an HTTP status to answer with, or `DROP`. The path is
      decoded and, for uploads too, contains the name of the object.
  """

  def __init__(self):
    self.buckets: set[str] = set()
    self.url = ""  # of the bucket of a test, see `gcs`
    self.objects: dict[tuple[str, str], tuple[bytes, int]] = {}
    self.uploads: dict[str, tuple[str, str, bytearray]] = {}
    self.fault: Callable[[str, str], int | None] = lambda method, path: None
    self.lock, self.generations = threading.RLock(), itertools.count(1)
    self._http = _Http(("127.0.0.1", 0), _Handler)
    self._http.state = self
    threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

  def environment(self) -> dict[str, str]:
    """Variables that lead the three clients to this server."""
    port = self._http.server_address[1]
    return {name: value.format(port=port) for name, value in ENVIRONMENT.items()}

  def names(self, url: str) -> list[str]:
    """Names of the objects below gs://BUCKET/PREFIX, relative to it."""
    bucket, _, prefix = url.removeprefix("gs://").partition("/")
    prefix = prefix and prefix + "/"
    with self.lock:
      keys = sorted(self.objects)
    return [n.removeprefix(prefix) for b, n in keys if b == bucket and n.startswith(prefix)]

  def content(self, url: str) -> bytes:
    """The content of an object."""
    bucket, _, name = url.removeprefix("gs://").partition("/")
    return self.objects[bucket, name][0]

  def put(self, url: str, content: bytes) -> None:
    """Stores an object."""
    bucket, _, name = url.removeprefix("gs://").partition("/")
    with self.lock:
      self.objects[bucket, name] = (bytes(content), next(self.generations))

  def put_folder(self, url: str, folder) -> None:
    """Stores the files of a local folder below a prefix."""
    for path in folder.rglob("*"):
      if path.is_file():
        self.put(f"{url}/{path.relative_to(folder)}", path.read_bytes())


class _Http(http.server.ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 128

  def handle_error(self, request, client_address):
    pass  # a client that was killed


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  disable_nagle_algorithm = True

  def log_message(self, *_):
    pass

  def _serve(self):
    state: Server = self.server.state
    url = urllib.parse.urlsplit(self.path)
    # Names of objects contain encoded slashes, so the path is split before it is decoded.
    parts = [urllib.parse.unquote(part) for part in url.path.strip("/").split("/")]
    query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
    body = self._body()
    path = "/".join(parts)
    if parts[0] == "upload" and (name := re.search(rb'"name": ?"([^"]+)"', body)):
      path += f"/{name[1].decode()}"
    status = state.fault(self.command, f"{path}/{query.get('name', '')}".rstrip("/"))
    if status == DROP:
      self.close_connection = True
      return
    if status is not None:
      self._answer(status, {"error": {"code": status, "message": f"fault {status}"}})
      return
    with state.lock:
      self._route(state, parts, query, body)

  do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve

  def _body(self) -> bytes:
    if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
      content = b""
      while size := int(self.rfile.readline().split(b";")[0], 16):
        content += self.rfile.read(size)
        self.rfile.readline()
      self.rfile.readline()
      return content
    return self.rfile.read(int(self.headers.get("Content-Length") or 0))

  def _route(self, state, parts, query, body):
    bucket = parts[parts.index("b") + 1] if "b" in parts else None
    if parts[0] == "upload" and "upload_id" in query:
      self._continue_upload(state, query["upload_id"], body)
      return
    if bucket not in state.buckets:
      self._answer(404, {"error": {"code": 404, "message": f"no bucket {bucket}"}})
      return
    rest = parts[parts.index("b") + 2 :]
    if not rest:
      self._answer(200, {"kind": "storage#bucket", "name": bucket, "id": bucket})
    elif parts[0] == "upload":
      self._upload(state, bucket, query, body)
    elif len(rest) == 1:
      self._list(state, bucket, query)
    else:
      self._object(state, bucket, rest[1], rest[2:], query)

  def _object(self, state, bucket, name, action, query):
    if (bucket, name) not in state.objects:
      self._answer(404, {"error": {"code": 404, "message": f"no object {name}"}})
    elif self._precondition_fails(state, bucket, name, query):
      self._answer(412, {"error": {"code": 412, "message": "precondition failed"}})
    elif self.command == "DELETE":
      del state.objects[bucket, name]
      self._answer(204, b"")
    elif action:
      verb = action[0]
      target = (action[-3], action[-1]) if len(action) > 3 else (bucket, action[-1])
      state.objects[target] = (state.objects[bucket, name][0], next(state.generations))
      if verb == "moveTo":
        del state.objects[bucket, name]
      resource = _resource(state, *target)
      self._answer(200, resource if verb != "rewriteTo" else {"done": True, "resource": resource})
    elif query.get("alt") == "media":
      self._media(*state.objects[bucket, name])
    else:
      self._answer(200, _resource(state, bucket, name))

  def _media(self, content, generation):
    headers = {
      "x-goog-generation": str(generation),
      "x-goog-hash": f"md5={base64.b64encode(hashlib.md5(content).digest()).decode()}",
      "x-goog-stored-content-length": str(len(content)),
    }
    status, size = 200, len(content)
    if match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
      first = int(match[1]) if match[1] else size - int(match[2])
      last = min(int(match[2]), size - 1) if match[1] and match[2] else size - 1
      if first >= size:
        self._answer(416, b"")
        return
      status, content = 206, content[first : last + 1]
      headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    self._answer(status, content, headers)

  def _list(self, state, bucket, query):
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    start, end = query.get("startOffset", ""), query.get("endOffset")
    items, prefixes = [], set()
    for owner, name in sorted(state.objects):
      if owner != bucket or not name.startswith(prefix) or name < start or (end and name >= end):
        continue
      rest = name[len(prefix) :]
      if delimiter and delimiter in rest:
        prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
      else:
        items.append(_resource(state, bucket, name))
    self._answer(200, {"items": items, "prefixes": sorted(prefixes)})

  def _upload(self, state, bucket, query, body):
    name = query.get("name")
    if query.get("uploadType") == "resumable":
      name = name or json.loads(body)["name"]
      upload_id = f"{bucket}-{next(state.generations)}"
      state.uploads[upload_id] = (bucket, name, bytearray())
      host = self.headers["Host"]
      self._answer(
        200,
        b"",
        {"Location": f"http://{host}/upload/storage/v1/b/{bucket}/o?upload_id={upload_id}"},
      )
      return
    if query.get("uploadType") == "multipart":
      boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
      _, metadata, content, _ = body.split(b"--" + boundary)
      split = lambda part: re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1]
      name = json.loads(split(metadata))["name"]
      body = re.sub(rb"\r?\n\Z", b"", split(content))
    if self._precondition_fails(state, bucket, name, query):
      self._answer(412, {"error": {"code": 412, "message": "precondition failed"}})
      return
    state.objects[bucket, name] = (body, next(state.generations))
    self._answer(200, _resource(state, bucket, name))

  def _continue_upload(self, state, upload_id, body):
    bucket, name, content = state.uploads[upload_id]
    content += body
    total = self.headers.get("Content-Range", "").rpartition("/")[2]
    if total == "*" and body or total.isdecimal() and len(content) < int(total):
      self._answer(308, b"", {"Range": f"bytes=0-{len(content) - 1}"})
      return
    state.objects[bucket, name] = (bytes(content), next(state.generations))
    self._answer(200, _resource(state, bucket, name))

  def _precondition_fails(self, state, bucket, name, query):
    _, generation = state.objects.get((bucket, name), (b"", 0))
    wanted, unwanted = query.get("ifGenerationMatch"), query.get("ifGenerationNotMatch")
    return (wanted is not None and int(wanted) != generation) or (
      unwanted is not None and int(unwanted) == generation
    )

  def _answer(self, status, content, headers=()):
    kind = "application/octet-stream"
    if not isinstance(content, bytes):
      content, kind = json.dumps(content).encode(), "application/json"
    self.send_response(status)
    for name, value in {"Content-Type": kind, **dict(headers)}.items():
      self.send_header(name, value)
    if status != 204:
      self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    self.wfile.write(content)


def _resource(state, bucket, name):
  content, generation = state.objects[bucket, name]
  return {
    "kind": "storage#object",
    "bucket": bucket,
    "name": name,
    "size": str(len(content)),
    "generation": str(generation),
    "metageneration": "1",
    "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
    "etag": f"e{generation}",
    "timeCreated": "2026-01-01T00:00:00.000Z",
    "updated": "2026-01-01T00:00:00.000Z",
  }


_server: Server | None = None


def server() -> Server:
  """The server of this process. The clients keep the address that they see first."""
  global _server
  if _server is None:
    _server = Server()
    os.environ.update(_server.environment())
  return _server


@pytest.fixture
def gcs(tmp_path, monkeypatch):
  """The server with no faults, an own bucket `server.url`, and an own local cache."""
  state = server()
  state.fault = lambda method, path: None
  state.url = f"gs://{uuid.uuid4().hex}"
  state.buckets.add(state.url.removeprefix("gs://"))
  monkeypatch.setenv("DGIA_JAX_REMOTE_CACHE", str(tmp_path / "remote_cache"))
  yield state
  state.fault = lambda method, path: None
