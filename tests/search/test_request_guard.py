"""Other sites cannot use the page, and no request makes it read another file or ask a server."""

import asyncio
import json

import pytest

from dgia_jax.search import request_guard
from dgia_jax.search.request_guard import (
  RefuseFaultyRequests,
  RefuseForeignFiles,
  RefuseForeignRequests,
)

OWN = "127.0.0.1:7860"


class App:
  """Answers 200 and keeps the body that it was sent."""

  body = None

  async def __call__(self, scope, receive, send):
    message = {"more_body": scope["type"] == "http"}
    self.body = b""
    while message["more_body"]:
      message = await receive()
      self.body += message["body"]
    if scope["type"] == "http":
      await send({"type": "http.response.start", "status": 200, "headers": []})
      await send({"type": "http.response.body", "body": b"answer"})
    elif scope["type"] == "websocket":
      await send({"type": "websocket.accept"})


def ask(app, headers=(), path="/gradio_api/queue/join", chunks=(b"",), kind="http"):
  """What `app` sends for a request."""
  sent = []
  messages = [
    {"type": "http.request", "body": chunk, "more_body": number < len(chunks) - 1}
    for number, chunk in enumerate(chunks)
  ]
  headers = [(name.encode(), value.encode("latin-1")) for name, value in headers]
  scope = {"type": kind, "method": "POST", "path": path, "headers": headers}

  async def receive():
    return messages.pop(0)

  async def send(message):
    sent.append(message)

  asyncio.run(app(scope, receive, send))
  return sent


def status(*arguments, **options):
  return ask(*arguments, **options)[0]["status"]


def guarded(host="127.0.0.1", names=()):
  return RefuseForeignRequests(App(), request_guard.own_names(host, names))


@pytest.mark.parametrize(
  "host",
  ["127.0.0.1:7860", "192.0.2.7", "[::1]:7860", "localhost:7860", "LOCALHOST", "localhost.",
   "studio:7860", "studio.local", "photos.example:80"],
)  # fmt: skip
def test_the_page_is_asked_for_by_its_own_names(host, monkeypatch):
  monkeypatch.setattr(request_guard.socket, "gethostname", lambda: "studio.example")
  assert status(guarded("photos.example"), [("host", host)]) == 200


@pytest.mark.parametrize(
  "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil", "", "["]
)
def test_a_name_that_was_bound_to_this_machine_is_refused(host):
  assert status(guarded(), [("host", host)]) == 403
  assert ask(guarded(), [("host", host)], kind="websocket")[0]["type"] == "websocket.close"


def test_a_name_can_be_added(caplog):
  headers = [("host", "photos.example:443"), ("origin", "https://photos.example")]
  assert status(guarded(names=["other.example", "Photos.example."]), headers) == 200
  refused, body = ask(guarded(names=["other.example"]), headers)
  assert refused["status"] == 403
  reason = "photos.example:443 is no known name of this page; if it is one, add"
  assert body["body"].decode().startswith(reason) and "--name HOST" in caplog.text
  assert f"a request was refused: {reason}" in caplog.text


def test_the_other_site_is_named(caplog):
  _, body = ask(guarded(), [("host", OWN), ("origin", "http://evil.example\n" + "x" * 5000)])
  assert b"comes from http://evil.example" in body["body"] and OWN.encode() in body["body"]
  assert len(caplog.records) == 1 and "\n" not in caplog.records[0].getMessage()
  assert len(caplog.records[0].getMessage()) < 400


def test_a_request_has_one_host():
  assert status(guarded(), []) == 403
  assert status(guarded(), [("host", OWN), ("host", "evil.example")]) == 403


@pytest.mark.parametrize(
  "host, origin, allowed",
  [
    (OWN, f"http://{OWN}", True),
    (OWN, f"https://{OWN}", True),
    ("localhost", "http://localhost:80", True),
    ("[::1]:7860", "http://[::1]:7860", True),
    (OWN, "http://127.0.0.1:8000", False),  # another program of this machine
    (OWN, "http://localhost:7860", False),
    (OWN, "https://evil.example", False),
    (OWN, "null", False),
    (OWN, "http://127.0.0.1:x", False),
    (OWN, "", False),
  ],
)
def test_another_site_is_no_origin_of_requests(host, origin, allowed):
  headers = [("host", host), ("origin", origin)]
  assert status(guarded(), headers) == (200 if allowed else 403)
  expected = "websocket.accept" if allowed else "websocket.close"
  assert ask(guarded(), headers, kind="websocket")[0]["type"] == expected


def test_the_start_of_the_server_is_no_request():
  assert ask(guarded(), kind="lifespan") == []


@pytest.fixture
def uploads(tmp_path):
  (tmp_path / "uploads").mkdir()
  return tmp_path / "uploads"


def values(*data):
  return json.dumps({"data": data, "fn_index": 1}).encode()


def test_values_with_uploads_reach_the_page_unchanged(uploads):
  app = App()
  body = values("a red coat", {"path": str(uploads / "x" / "a.png"), "url": None}, -1, None)
  assert status(RefuseForeignFiles(app, uploads), chunks=[body[:9], body[9:]]) == 200
  assert app.body == body
  for body in (values("red", None, {"path": None}), b""):
    assert status(RefuseForeignFiles(app, uploads), chunks=[body]) == 200
    assert app.body == body


@pytest.mark.parametrize(
  "path",
  ["https://example.org/x.png", "http://127.0.0.1:9/x.png", "/etc/passwd", "UPLOADS/../x.png",
   "UPLOADS", "LINK", "", "a\0b", 7, ["x"]],
)  # fmt: skip
def test_values_name_uploads_only(uploads, tmp_path, path):
  (tmp_path / "x.png").write_text("")
  (uploads / "link.png").symlink_to(tmp_path / "x.png")
  if isinstance(path, str):
    path = path.replace("UPLOADS", str(uploads)).replace("LINK", str(uploads / "link.png"))
  app = App()
  for body in (
    values("", {"path": path, "meta": {"_type": "gradio.FileData"}}),
    values([[{"image": {"path": path}}]]),
    b'{"path": %s, "path": null}' % json.dumps(path).encode(),
  ):
    assert status(RefuseForeignFiles(app, uploads), chunks=[body]) == 400
  assert app.body is None


def test_no_address_is_fetched(uploads):
  guard = RefuseForeignFiles(App(), uploads)
  for start in ("/gradio_api/file=", "/gradio_api/file/", "/gradio_api/proxy="):
    for scheme in ("http", "https"):
      assert status(guard, path=f"{start}{scheme}://example.org/x.png") == 400
  assert status(guard, path=f"/gradio_api/file={uploads}/x.png") == 200


def test_values_that_cannot_be_checked_are_refused(uploads):
  guard = RefuseForeignFiles(App(), uploads)
  for body in (b"{", b"\xff", b"[" * 100_000):
    assert status(guard, chunks=[body]) == 400
  assert status(guard, chunks=[b"x" * 2**19] * 3) == 413
  assert status(guard, path=request_guard.UPLOADS, chunks=[b"x" * 2**19] * 3) == 200
  assert status(guard, path="/gradio_api/run/upload", chunks=[b"x"]) == 400


def test_a_failure_is_one_line(caplog):
  async def fail(scope, receive, send):
    raise KeyError("a\nb")

  assert status(RefuseFaultyRequests(fail)) == 400
  assert "a request was refused: POST /gradio_api/queue/join: KeyError" in caplog.text
  with pytest.raises(KeyError):
    ask(RefuseFaultyRequests(fail), kind="lifespan")
