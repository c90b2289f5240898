"""A local web page for an index: describe a person, see ranked images, click one for similar ones.

  python -m dgia_jax.search serve --index INDEX

The address of the page carries the query, so that a search can be bookmarked. The page receives
reduced copies of the images found; it cannot ask for any other file. Uploaded images are kept in a
private folder that is removed when the server stops. The page sends nothing to other servers.
"""

import base64
import csv
import dataclasses
import html
import io
import json
import os
import signal
import tempfile
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from absl import logging

from dgia_jax.data import images as images_lib
from dgia_jax.errors import UserError, printable
from dgia_jax.search.index import Match, SearchIndex
from dgia_jax.search.retriever import Retriever

TITLE = "Find a person by description"
EXAMPLES = ("a woman in a red coat with a backpack", "a man wearing a black jacket and blue jeans")
NOTICE = (
  "Results show how well a picture matches your description. They do not identify anyone. "
  "Search only pictures of people who may be searched for."
)
MAX_TOP = 100  # images shown for one search
HEIGHT = 384  # pixels of an image on the page, at most
KEPT_SECONDS = 3600  # for which an uploaded image is kept
# Tiles are portrait, as people are; `contain` shows the whole picture, whatever its shape.
STYLE = """<style>
#results .tiles { display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(150px, 30%), 1fr)); }
#results figure { margin: 0; min-width: 0; }
#results figure a { display: block; border-radius: 8px; overflow: hidden;
  background: var(--background-fill-secondary); }
#results img { display: block; width: 100%; aspect-ratio: 1 / 2; object-fit: contain; margin: 0; }
#results figcaption { font-size: 12px; line-height: 1.35; margin-top: 4px;
  overflow-wrap: anywhere; }
#results .rank { font-weight: 600; margin-right: 6px; }
#results .bar { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 4px 0 12px; }
#results a { color: var(--link-text-color); }
footer { display: none !important; }
</style>"""
# Runs in the browser after a search: (words, similar row, number) -> the address.
_SET_ADDRESS = """(q, like, top) => {
  const query = new URLSearchParams();
  if (q.trim()) query.set("q", q);
  if (like >= 0) query.set("like", like);
  query.set("top", top);
  history.pushState(null, "", "?" + query);
}"""


@dataclasses.dataclass(frozen=True)
class Query:
  """A search as the address of the page carries it.

  Attributes:
    text: the description; may be empty.
    like: index row of an image whose likes are searched; -1 for none.
    top: number of images to show.
  """

  text: str = ""
  like: int = -1
  top: int = 20

  @classmethod
  def from_address(cls, params: Mapping[str, str], default_top: int) -> "Query":
    """Reads the query of an address; values that are no numbers are ignored."""

    def number(name: str, default: int) -> int:
      value = params.get(name, "")
      return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else default

    return cls(params.get("q", ""), number("like", -1), number("top", default_top))

  def to_address(self) -> str:
    """The query part of an address."""
    params = {"q": self.text} if self.text.strip() else {}
    params |= {"like": self.like} if self.like >= 0 else {}
    return "?" + urllib.parse.urlencode(params | {"top": self.top}, errors="replace")


class Searcher:
  """The logic behind the page, without its appearance."""

  def __init__(self, retriever: Retriever, index: SearchIndex):
    self._retriever, self._index = retriever, index

  def search(self, query: Query, image: PIL.Image.Image | None = None) -> list[Match]:
    """The images that fit a description, an uploaded image, an image of the index, or a mix.

    The features of what is given are averaged. An image of the index is not among its own likes.
    """
    features, like = [], None
    if query.text.strip():
      features += [*self._retriever.embed_texts(query.text)]
    if image is not None:
      features += [*self._retriever.embed_images(image)]
    if query.like in self._index.rows:
      features += [*self._index.features([query.like])]
      like = self._index.images / self._index.paths[query.like]
    if not features:
      return []
    top = min(max(query.top, 1), MAX_TOP)
    return self._index.matches(np.mean(features, axis=0), top, without=like)

  def show(self, query: Query, image: PIL.Image.Image | None = None) -> str:
    """The results of a search as HTML."""
    matches = self.search(query, image)
    heading = ""
    if query.like in self._index.rows:
      without = html.escape(dataclasses.replace(query, like=-1).to_address())
      heading = (
        f"<p>Images similar to {html.escape(self._name(query.like))}"
        f' (<a href="{without}" target="_self">remove</a>)</p>'
      )
    if not matches:
      empty = not (query.text.strip() or image or heading)
      return STYLE + heading + ("" if empty else "<p>No image was found.</p>")
    tiles = [self._tile(rank, match, query.top) for rank, match in enumerate(matches, start=1)]
    return f'{STYLE}{heading}{self._downloads(matches)}<div class="tiles">{"".join(tiles)}</div>'

  def _tile(self, rank: int, match: Match, top: int) -> str:
    name = html.escape(self._name(match.row))
    address = html.escape(Query(like=match.row, top=top).to_address())
    caption = f'<span class="rank">{rank}</span>{match.score:.3f}<br>{name}'
    try:
      source = _data_address(images_lib.read_thumbnail(match.path, 2 * HEIGHT, HEIGHT))
    except images_lib.UnreadableImageError:
      picture = "<span>removed since it was indexed</span>"
    else:
      picture = f'<img src="{source}" alt="{name}" title="find similar images">'
    link = f'<a href="{address}" target="_self">{picture}</a>'
    return f"<figure>{link}<figcaption>{caption}</figcaption></figure>"

  def _downloads(self, matches: Sequence[Match]) -> str:
    """Links that save the list of results; the files are part of the page."""
    rows = [
      {"rank": rank, "score": round(match.score, 6), "path": self._name(match.row)}
      for rank, match in enumerate(matches, start=1)
    ]
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    files = {
      "CSV": ("results.csv", "text/csv", table.getvalue()),
      "JSON": ("results.json", "application/json", json.dumps(rows, indent=2)),
    }
    links = []
    for label, (name, kind, text) in files.items():
      content = base64.b64encode(text.encode("utf-8")).decode("ascii")
      links.append(f'<a download="{name}" href="data:{kind};base64,{content}">{label}</a>')
    return f'<div class="bar"><span>Download the list:</span>{"".join(links)}</div>'

  def _name(self, row: int) -> str:
    """The path of an image as text that every browser takes, also of undecodable names."""
    return os.fsencode(self._index.paths[row]).decode("utf-8", "replace")


def _data_address(image: PIL.Image.Image) -> str:
  """An image as an address that holds its own content."""
  buffer = io.BytesIO()
  image.save(buffer, "JPEG", quality=85)
  return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def make_page(searcher: Searcher, num_images: int, default_top: int = 20) -> Any:
  """Builds the page, a `gradio.Blocks`.

  Args:
    searcher: finds and shows the images.
    num_images: images in the index, for the heading.
    default_top: images shown for a search, unless the address says otherwise.

  Raises:
    UserError: Gradio is not installed.
  """
  try:
    import gradio
  except ImportError as error:
    raise UserError("the page needs Gradio: pip install 'dgia_jax[serve]'") from error

  def open_address(request: gradio.Request) -> Any:
    query = Query.from_address(request.query_params, default_top)
    if query == Query(top=default_top):
      return gradio.skip()  # or a description typed while the page loads would be lost
    return query.text, query.like, min(max(query.top, 1), MAX_TOP), searcher.show(query)

  def search(text: str, image: PIL.Image.Image | None, like: Any, top: Any) -> tuple[str, int]:
    # Words with a similar image narrow it down; an upload starts another search.
    like = -1 if image is not None else _whole_number(like, -1)
    return searcher.show(Query(text, like, _whole_number(top, default_top)), image), like

  with gradio.Blocks(
    title=TITLE, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
  ) as page:
    gradio.Markdown(f"# {TITLE}\n{num_images:,} images. {NOTICE}")
    text = gradio.Textbox(
      label="description", placeholder=EXAMPLES[0], max_lines=3, elem_id="description"
    )
    with gradio.Accordion("Image and number of results", open=False, elem_id="more"):
      image = gradio.Image(
        label="find images similar to this one, and to the description if there is one",
        type="pil", sources=["upload", "clipboard"], height=200, elem_id="image",
      )  # fmt: skip
      top = gradio.Slider(1, MAX_TOP, value=default_top, step=1, label="images to show")
    button = gradio.Button("Search", variant="primary", elem_id="search")
    examples = " · ".join(
      f'<a href="{html.escape(Query(example, top=default_top).to_address())}" target="_self">'
      f"{html.escape(example)}</a>"
      for example in EXAMPLES
    )
    gradio.HTML(f"<p>Examples: {examples}. Click an image to find similar ones.</p>")
    like = gradio.Number(-1, visible=False)
    results = gradio.HTML(STYLE, elem_id="results")

    page.load(open_address, None, [text, like, top, results], api_visibility="private")
    for event in (text.submit, button.click):
      event(search, [text, image, like, top], [results, like], api_visibility="private").then(
        None, [text, like, top], None, js=_SET_ADDRESS
      )
  return page


def serve(searcher: Searcher, num_images: int, host: str, port: int, default_top: int) -> None:
  """Serves the page until interrupted.

  Raises:
    UserError: Gradio is not installed, or the address cannot be used.
  """
  with tempfile.TemporaryDirectory(prefix="dgia_jax_page_") as folder:
    os.environ["GRADIO_TEMP_DIR"] = folder  # read when Gradio is imported
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    bypass_proxy(host)
    page = make_page(searcher, num_images, default_top)
    import gradio
    from starlette.middleware import Middleware

    searcher.search(Query("a person", top=default_top))  # compiles before the first visit
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops as Ctrl-C does
    # The default theme has the browser fetch its fonts from another server.
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
      page.launch(
        server_name=host,
        server_port=port,
        show_error=False,
        quiet=False,
        theme=theme,
        app_kwargs={"middleware": [Middleware(RefuseFaultyRequests)]},
      )
    except OSError as error:
      raise UserError(f"--host={host} --port={port}: cannot be used ({error})") from error


def _whole_number(value: Any, default: int) -> int:
  """The value as an integer; programs can send anything."""
  try:
    return int(value)
  except (TypeError, ValueError, OverflowError):
    return default


class RefuseFaultyRequests:
  """Answers 400 where Gradio fails on a request, and logs one line instead of a traceback."""

  def __init__(self, app: Callable[..., Any]):
    """Stands between the server and `app`, as ASGI has it."""
    self._app = app

  async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
    """Passes a request on."""
    started = False

    async def send_and_note(message: Mapping[str, Any]) -> None:
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
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 400, "headers": headers})
        await send({"type": "http.response.body", "body": b"This request cannot be answered."})


def bypass_proxy(host: str) -> None:
  """Keeps Gradio's check of its own address from a proxy, which could not reach it."""
  for name in ("no_proxy", "NO_PROXY"):
    hosts = [entry for entry in os.environ.get(name, "").split(",") if entry]
    own = [entry for entry in ("localhost", "127.0.0.1", "::1", host) if entry not in hosts]
    os.environ[name] = ",".join(hosts + own)
