"""What stands between the web page and whoever sends requests to it, as ASGI middleware.

The page shows pictures of people and has no password. `RefuseForeignRequests` keeps other sites,
which the browser of a visitor may have open, from using it; `RefuseForeignFiles` keeps it from
reading other files or asking other servers; `RefuseFaultyRequests` answers where Gradio fails.
None of them needs Gradio.
"""

import ipaddress
import json
import os
import pathlib
import socket
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from absl import logging

from dgia_jax.errors import printable

Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Mapping[str, Any], Receive, Send], Awaitable[None]]

MAX_VALUES_BYTES = 2**20  # of the values of the page's form, without uploads
UPLOADS = "/gradio_api/upload"  # the only address that receives files
_SHOWN = 100  # characters of what a request names
_POLICY_VIOLATION = 1008  # WebSocket's code for a refusal


def own_names(host: str, others: Iterable[str] = ()) -> frozenset[str]:
  """Names by which a browser may ask for this machine's page; addresses need no name.

  Names that only a DNS server knows are not asked for, which could take long.

  Args:
    host: where the page listens.
    others: further names, such as those of `serve --name`.
  """
  machine = socket.gethostname()
  short = machine.partition(".")[0]
  names = ("localhost", host, machine, short, f"{short}.local", *others)
  return frozenset(_plain(name) for name in names if name)


class RefuseForeignRequests:
  """Answers 403 to requests that another site has made a browser send.

  Such a site may have told the browser that its own name leads to this machine (DNS rebinding), so
  the name in the address must be one that no other site can have. Or it sends a request here, which
  browsers mark with the site as its origin.
  """

  def __init__(self, app: App, names: frozenset[str]):
    """Stands before `app`; `names` are those of `own_names`."""
    self._app, self._names = app, names

  async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
    """Passes a request on, or refuses it."""
    reason = self._reason(scope["headers"]) if scope["type"] in ("http", "websocket") else ""
    if reason:
      logging.warning("a request was refused: %s", reason)
      await _refuse(scope, send, 403, reason)
    else:
      await self._app(scope, receive, send)

  def _reason(self, headers: list[tuple[bytes, bytes]]) -> str:
    """Why a request is refused; "" if it is not."""
    hosts, origins = (
      [value.decode("latin-1") for key, value in headers if key.lower() == name]
      for name in (b"host", b"origin")
    )
    if len(hosts) != 1 or len(origins) > 1:
      return f"It has {len(hosts)} Host and {len(origins)} Origin headers"
    shown = printable(hosts[0])[:_SHOWN]
    try:
      host = urllib.parse.urlsplit(f"//{hosts[0]}")
      if not (_is_address(host.hostname) or _plain(host.hostname or "") in self._names):
        return (
          f"{shown} is no known name of this page; if it is one, add to the command: --name HOST"
        )
      origin = urllib.parse.urlsplit(origins[0]) if origins else None
      if origin is None or _place(origin, origin.scheme) == _place(host, origin.scheme):
        return ""
    except ValueError:  # a port that is no number, or half a bracket
      pass
    origin = printable("".join(origins))[:_SHOWN]
    return (
      f"It comes from {origin or 'nowhere'}, and the page is {shown}; a proxy before the page has"
      " to keep the Host header"
    )


class RefuseForeignFiles:
  """Answers 400 to requests for what is neither the page nor an upload.

  Gradio would download what is given as an address: an image among the values of the form, or the
  file at the end of the request's own address.
  """

  def __init__(self, app: App, folder: pathlib.Path | str):
    """Stands before `app`, whose uploads are in `folder`."""
    self._app, self._folder = app, os.path.realpath(folder)

  async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
    """Passes a request on, or refuses it."""
    if scope["type"] != "http" or scope["path"] == UPLOADS:
      await self._app(scope, receive, send)
      return
    if "://" in scope["path"]:
      await _refuse(scope, send, 400, "This is no file of the page")
      return
    body, has_more = b"", True
    while has_more:
      message = await receive()
      if message["type"] == "http.disconnect":
        return
      body += message.get("body", b"")
      has_more = message.get("more_body", False)
      if len(body) > MAX_VALUES_BYTES:
        await _refuse(scope, send, 413, "The values are too long")
        return
    if body and not self._is_harmless(body):
      await _refuse(scope, send, 400, "The values name a file that was not uploaded")
      return
    is_read = False

    async def read() -> Message:
      nonlocal is_read
      if is_read:
        return await receive()
      is_read = True
      return {"type": "http.request", "body": body, "more_body": False}

    await self._app(scope, read, send)

  def _is_harmless(self, body: bytes) -> bool:
    """Whether these are values in JSON, and all files that they name are uploads."""
    try:
      json.loads(body, object_pairs_hook=self._check)
    except (ValueError, RecursionError):
      return False
    return True

  def _check(self, pairs: list[tuple[str, Any]]) -> None:
    """Raises ValueError if an object of the values names another file."""
    for key, value in pairs:
      if key == "path" and value is not None:
        is_upload = isinstance(value, str) and (
          os.path.realpath(value).startswith(self._folder + os.sep)
        )
        if not is_upload:
          raise ValueError(f"{value!r} is no upload")


class RefuseFaultyRequests:
  """Answers 400 where Gradio fails on a request, and logs one line instead of a traceback."""

  def __init__(self, app: App):
    """Stands before `app`."""
    self._app = app

  async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
    """Passes a request on."""
    started = False

    async def send_and_note(message: Message) -> None:
      nonlocal started
      started = True
      await send(message)

    try:
      await self._app(scope, receive, send_and_note)
    except Exception as error:  # of any kind: the content of a request is arbitrary
      if scope["type"] != "http":
        raise
      reason = printable(f"{scope['method']} {scope['path']}: {error!r}")
      logging.warning("a request was refused: %s", reason[:300])
      if not started:
        await _refuse(scope, send, 400, "This request cannot be answered")


async def _refuse(scope: Mapping[str, Any], send: Send, status: int, reason: str) -> None:
  """Answers a request that goes no further."""
  if scope["type"] == "websocket":
    await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
    return
  headers = [(b"content-type", b"text/plain")]
  await send({"type": "http.response.start", "status": status, "headers": headers})
  await send({"type": "http.response.body", "body": f"{reason}.".encode()})


def _plain(name: str) -> str:
  """A host's name without the differences that do not matter."""
  return name.lower().removesuffix(".")


def _is_address(name: str | None) -> bool:
  """Whether this is an IP address, which leads to no other machine than it says."""
  try:
    ipaddress.ip_address(name or "")
  except ValueError:
    return False
  return True


def _place(address: urllib.parse.SplitResult, scheme: str) -> tuple[str, int | None]:
  """Host and port of an address; the port that the scheme implies may be left out."""
  implied = {"http": 80, "https": 443}.get(scheme)
  return _plain(address.hostname or ""), address.port or implied
