"""Odd requests to the page: an answer or an error status, and no file outside the index."""

import http.client
import io
import json
import random
import socket
import subprocess
import sys
import time
import urllib.parse

import pytest
from PIL import Image

from dgia_jax.search import index as index_lib
from dgia_jax.search.retriever import Retriever

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(300)]

METHODS = ("GET", "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "X" * 300)
PATHS = (
  "/", "/config", "/gradio_api/info", "/gradio_api/queue/join", "/gradio_api/queue/data",
  "/gradio_api/upload", "/gradio_api/run/search", "/gradio_api/call/search", "/gradio_api/file=",
  "/gradio_api/heartbeat/x", "/file=", "/static/", "/assets/", "/gradio_api/proxy=", "/%00", "/%ff",
  "//", "/..", "/theme.css", "/login", "/gradio_api/stream/a/b/c/playlist.m3u8", "/robots.txt",
)  # fmt: skip
VALUES = (
  "", " ", "red", "0", "-1", "1", "20", "101", "1e9", "nan", "9" * 30, "9" * 5000, "-" + "9" * 30,
  "\x00", "é", "\udcff", "../../etc/passwd", "/etc/passwd", "<script>", "%", "a" * 5000, "[]", "{}",
)  # fmt: skip
DATA = (
  None, True, -1, 0, 3, 2.5, 1e300, 2**70, "", "a red coat", "\x00", "x" * 20_000, [], {},
  {"path": "SECRET"}, {"path": "SECRET", "meta": {"_type": "gradio.FileData"}},
  {"url": "http://127.0.0.1:9/x"}, {"path": "http://127.0.0.1:9/x.png"}, {"path": "UPLOAD"},
)  # fmt: skip
FILE_DATA = {"_type": "gradio.FileData"}


@pytest.fixture
def server(known_run, image_folder, tmp_path):
  """A running page: its port, its process and the file of its output."""
  pytest.importorskip("gradio")
  index_lib.build(Retriever.from_run(known_run), known_run, image_folder, tmp_path / "index")
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  command = [sys.executable, "-m", "dgia_jax.search", "serve", "--index", str(tmp_path / "index")]
  with open(tmp_path / "output", "w") as output:
    process = subprocess.Popen(
      [*command, "--port", str(port), "--top", "4"], stdout=output, stderr=subprocess.STDOUT
    )
  try:
    for _ in range(120):
      assert process.poll() is None, (tmp_path / "output").read_text()
      try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        break
      except OSError:
        time.sleep(0.5)
    yield port, process, tmp_path / "output"
  finally:
    process.terminate()
    process.wait(timeout=60)


def request(port, method, path, body=None, headers=None):
  """Status and body of the answer; (0, b"") if the connection was closed or stayed silent."""
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
  try:
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read(200_000)
  except (OSError, http.client.HTTPException):
    return 0, b""
  finally:
    connection.close()


def odd_request(draw, secret):
  """Method, path, body and headers of a request."""
  path = draw.choice(PATHS) + draw.choice(("", "", "", str(secret), "../../../" + str(secret)))
  names = draw.choices(("q", "like", "top", "p", "session_hash", "__theme", "upload_id"), k=2)
  query = urllib.parse.urlencode({n: draw.choice(VALUES) for n in names}, errors="surrogateescape")
  headers = {"Content-Type": draw.choice(("application/json", "text/plain", "", "image/png"))}
  kind = draw.randrange(4)
  if kind == 0:
    body = None
  elif kind == 1:
    body = draw.randbytes(draw.choice((0, 1, 100, 50_000)))
  elif kind == 2:
    headers["Content-Type"] = f"multipart/form-data; boundary={draw.choice(('b', '', 'x' * 100))}"
    name = draw.choice(("a.png", "../../evil.png", "/etc/x", "\x00", ""))
    part = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = part.encode() + draw.randbytes(50) + draw.choice((b"\r\n--b--\r\n", b""))
  else:
    values = [draw.choice(DATA) for _ in range(draw.choice((0, 1, 6, 6, 7)))]
    content = {"data": values, "fn_index": draw.choice((0, 1, 2, 3, -1, 99, None, "x")),
               "session_hash": draw.choice(("s", "", None, 3)), "event_data": None}  # fmt: skip
    body = json.dumps(draw.choice((content, content, content, [content], values)))
    body = body.replace("SECRET", str(secret)).encode()
  return draw.choice(METHODS), f"{path}?{query}", body, headers


def search_page(port, values, session):
  """What the page shows for the values of its form: the stream of events, as text."""
  content = {"data": values, "fn_index": 1, "session_hash": session}
  headers = {"Content-Type": "application/json"}
  body = json.dumps(content).encode()
  status, _ = request(port, "POST", "/gradio_api/queue/join", body, headers)
  if status != 200:
    return f'"success": false, with status {status}'  # a number beyond 64 bits, say
  return request(port, "GET", f"/gradio_api/queue/data?session_hash={session}")[1].decode()


def upload(port, content):
  """Uploads a file and returns its path on the server."""
  start = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
  headers = {"Content-Type": "multipart/form-data; boundary=b"}
  body = start + content + b"\r\n--b--\r\n"
  status, answer = request(port, "POST", "/gradio_api/upload", body, headers)
  assert status == 200, answer
  return json.loads(answer)[0]


def test_the_page_survives_odd_requests_and_shows_no_other_file(server, tmp_path):
  port, process, output = server
  secret = tmp_path / "secret.png"
  Image.new("RGB", (8, 8), "red").save(secret)
  content = secret.read_bytes()
  (tmp_path / "secret.txt").write_text("do not tell")
  assert "tiles" in search_page(port, ["a red coat", None, "", "", "", 4], "first")
  draw = random.Random(0)
  for _ in range(300):
    asked = odd_request(draw, draw.choice((secret, tmp_path / "secret.txt")))
    status, body = request(port, *asked)
    assert status < 500, (status, asked, body[:500])
    assert b"Traceback" not in body and content not in body and b"do not tell" not in body, asked
    assert process.poll() is None, asked
  for number in range(60):
    values = [draw.choice(DATA) for _ in range(6)]
    values[1] = draw.choice((None, None, values[1]))
    values = json.loads(json.dumps(values).replace("SECRET", str(secret)))
    shown = search_page(port, values, f"s{number}")
    assert '"success":' in shown and "Traceback" not in shown, values
  for number in range(10):  # uploads that are no images
    path = upload(port, draw.randbytes(draw.choice((0, 10, 1000))))
    shown = search_page(port, ["", {"path": path, "meta": FILE_DATA}, "", "", "", 4], f"u{number}")
    assert "Traceback" not in shown and "<img" not in shown, shown
  for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
    assert request(port, "GET", "/", headers=headers)[0] == 403
    assert request(port, "GET", "/config", headers=headers)[0] == 403
  fetched = ["", {"path": "http://127.0.0.1:9/x.png", "meta": FILE_DATA}, "", "", "", 4]
  assert "status 400" in search_page(port, fetched, "fetched")
  assert request(port, "GET", "/gradio_api/file=http://127.0.0.1:9/x.png")[0] == 400
  start = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
  large = start + bytes(51 * 2**20) + b"\r\n--b--\r\n"
  multipart = {"Content-Type": "multipart/form-data; boundary=b"}
  assert request(port, "POST", "/gradio_api/upload", large, multipart)[0] in (0, 400, 413)
  buffer = io.BytesIO()
  Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
  path = upload(port, buffer.getvalue())
  assert "<img" in search_page(
    port, ["", {"path": path, "meta": FILE_DATA}, "", "", "", 4], "upload"
  )
  assert "tiles" in search_page(port, ["a red coat", None, "", "", "", 4], "last")
  # Gradio logs tracebacks of values that its own components refuse; none may come from our code.
  assert "/dgia_jax/" not in output.read_text(), output.read_text()[-5000:]
