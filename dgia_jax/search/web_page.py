"""A local web page for an index: describe a person, see ranked images, click one for similar ones.

  python -m dgia_jax.search serve --index INDEX

The address of the page carries the query, so that a search can be bookmarked. The page receives
reduced copies of the images found; it cannot ask for any other file. Uploaded images are kept in a
private folder that is removed when the server stops. The page sends nothing to other servers, and
`request_guard` refuses what other sites, or programs that pose as the page, send to it.
"""

import base64
import dataclasses
import functools
import html
import io
import os
import signal
import tempfile
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Float

from dgia_jax.data import images as images_lib
from dgia_jax.errors import UserError
from dgia_jax.search import request_guard, results_html
from dgia_jax.search.index import SearchIndex
from dgia_jax.search.matches import Match
from dgia_jax.search.query import UNKNOWN_WORDS, Query, combine, image_key, row_of, text_of
from dgia_jax.search.retriever import Retriever

EXAMPLES = ("a woman in a red coat with a backpack", "a man wearing a black jacket and blue jeans")
NOTICE = (
  "Results show how well a picture matches your description. They do not identify anyone. "
  "Search only pictures of people who may be searched for."
)
MAX_TOP = 100  # images per page
MAX_RESULTS = 1000  # of one search, on all its pages
HEIGHT = 384  # pixels of an image on the page, at most
MAX_UPLOAD = "50mb"  # of an uploaded image, as Gradio writes sizes
KEPT_SECONDS = 3600  # for which an uploaded image is kept
# Run in the browser, after a search and at the start: the address shows what was asked for, and
# the browser's way back to an earlier address shows its results.
_SET_ADDRESS = """(q, like, less, only, top) => {
  const query = new URLSearchParams();
  if (q.trim()) query.set("q", q);
  if (like) query.set("like", like);
  if (less) query.set("less", less);
  if (only && only.trim()) query.set("only", only);
  query.set("top", top);
  history.pushState(null, "", "?" + query);
}"""
_FOLLOW_HISTORY = "() => window.addEventListener('popstate', () => location.reload())"


class Searcher:
  """The logic behind the page, without its appearance."""

  def __init__(self, retriever: Retriever, index: SearchIndex):
    self._retriever, self._index = retriever, index
    # After a compaction, all paths are looked through for an image of an earlier address.
    find = lambda key: row_of(key, index.paths, index.rows)
    self._row = functools.lru_cache(64)(find)

  @property
  def title(self) -> str:
    """The heading of the page."""
    return f"Find a person in {text_of(self._index.name)}"

  @property
  def num_images(self) -> int:
    """The number of images that are searched."""
    return len(self._index)

  @property
  def examples(self) -> tuple[str, ...]:
    """Captions of indexed images, or general descriptions if the index knows none."""
    return self._index.identities.examples or EXAMPLES

  def search(self, query: Query, image: PIL.Image.Image | None = None) -> list[Match]:
    """The images that fit a description, an uploaded image, an image of the index, or a mix.

    An image of the index is not among its own likes, and a picture is shown once.
    """
    return self._matches(self._feature(query, image), query)[0]

  def _matches(
    self, query_D: Float[np.ndarray, " D"] | None, query: Query
  ) -> tuple[list[Match], bool]:
    """The page of images that fit a feature, and whether another page follows."""
    if query_D is None:
      return [], False
    rows = [self._row(key) for key in (query.like, query.less)]
    without = [self._index.images / self._index.paths[row] for row in rows if row is not None]
    start, stop = _range(query)
    # One more than is shown, which tells whether a page follows.
    matches = self._index.matches(query_D, stop + 1, without, query.only, fold=True)
    return matches[start:stop], len(matches) > stop and stop < MAX_RESULTS

  def _correct(
    self, matches: Sequence[Match], query: Query, image: PIL.Image.Image | None
  ) -> list[bool] | None:
    """Which results show the person that was asked for; None if that is not known."""
    texts = [query.text] if query.text.strip() else []
    images = [] if image is None else [None]
    if (like := self._row(query.like)) is not None:
      images.append(self._index.images / self._index.paths[like])
    return self._index.identities.correct(texts, images, [match.files for match in matches])

  def _feature(self, query: Query, image: PIL.Image.Image | None) -> Float[np.ndarray, " D"] | None:
    """The feature that is searched for, None if nothing is."""
    more, less = [], None
    if query.text.strip():
      more += [*self._retriever.embed_texts(query.text)]
    if image is not None:
      more += [*self._retriever.embed_images(image)]
    if (row := self._row(query.like)) is not None:
      more += [*self._index.features([row])]
    if (row := self._row(query.less)) is not None:
      less = self._index.features([row])
    return combine(np.stack(more), less) if more else None

  def show(self, query: Query, image: PIL.Image.Image | None = None) -> str:
    """The results of a search as HTML."""
    query_D = self._feature(query, image)
    matches, has_next = self._matches(query_D, query)
    marks = self._correct(matches, query, image)
    notes = self._notes(query)
    if not matches:
      empty = not (query.text.strip() or image or notes)
      text = "" if empty else "<p>No image was found.</p>"
      return results_html.STYLE + notes + text + self._pages(query, False, image)
    first = _range(query)[0] + 1
    tiles = [
      self._tile(first + number, match, query, bool(marks and marks[number]))
      for number, match in enumerate(matches)
    ]
    rows = self._rows(first, matches, marks)
    histogram = self._index.histogram(query_D)
    return (
      f"{results_html.STYLE}{notes}{results_html.downloads(rows)}"
      f'<div class="tiles">{"".join(tiles)}</div>{self._pages(query, has_next, image)}'
      f"{results_html.histogram(histogram, matches[-1].score, matches[0].score)}"
    )

  def _pages(self, query: Query, has_next: bool, image: PIL.Image.Image | None) -> str:
    """Links to the neighbouring pages."""
    if image is not None:
      return "<p>An uploaded image has one page: show more images on it.</p>" if has_next else ""
    address = lambda page: dataclasses.replace(query, page=page).to_address()
    previous = address(query.page - 1) if query.page > 1 else ""
    return results_html.pages(query.page, previous, address(query.page + 1) if has_next else "")

  def _notes(self, query: Query) -> str:
    """What else the search depends on, each with a link that removes it."""
    notes = []
    for field, text in (("like", "similar to"), ("less", "not like")):
      if (row := self._row(getattr(query, field))) is not None:
        name = html.escape(self._name(row))
        rest = dataclasses.replace(query, page=1, **{field: ""})
        without = html.escape(rest.to_address())
        notes.append(f'<p>Images {text} {name} (<a href="{without}" target="_self">remove</a>)</p>')
    if query.text.strip() and not self._retriever.knows_a_word_of(query.text):
      notes.append(f"<p>{UNKNOWN_WORDS}</p>")
    return "".join(notes)

  def _tile(self, rank: int, match: Match, query: Query, is_correct: bool) -> str:
    name = html.escape(self._name(match.row))
    key = image_key(match.row, self._index.paths[match.row])
    address = html.escape(Query(like=key, only=query.only, top=query.top).to_address())
    # A word beside the green frame, for those who cannot tell its colour.
    mark = '<span class="mark">✓ correct</span>' if is_correct else ""
    caption = (
      f'<span class="score"><span class="rank">{rank}</span>{match.score:.3f}</span>{mark}'
      f' <label for="zoom-{rank}">enlarge</label>'
    )
    if query.text.strip() or query.like:
      less = html.escape(dataclasses.replace(query, less=key, page=1).to_address())
      caption += f' <a class="less" href="{less}" target="_self">less like this</a>'
    caption += f"<br>{name}"
    if match.copies:
      copies = ", ".join(text_of(path.relative_to(self._index.images)) for path in match.copies)
      number = f"{len(match.copies)} {'copy' if len(match.copies) == 1 else 'copies'}"
      caption += f'<br><span title="{html.escape(copies)}">and {number}</span>'
    try:
      source = _data_address(images_lib.read_thumbnail(match.path, 2 * HEIGHT, HEIGHT))
    except images_lib.UnreadableImageError:
      picture = "<span>removed since it was indexed</span>"
    else:
      picture = f'<img src="{source}" alt="{name}" title="find similar images">'
    # Checked, it shows the picture over the whole window; the label then covers the window, too.
    zoom = f'<input type="checkbox" class="zoom" id="zoom-{rank}" aria-label="enlarge {rank}">'
    link = f'<a href="{address}" target="_self">{picture}</a>'
    kind = ' class="correct"' if is_correct else ""
    return f"<figure{kind}>{zoom}{link}<figcaption>{caption}</figcaption></figure>"

  def _rows(
    self, first: int, matches: Sequence[Match], marks: Sequence[bool] | None
  ) -> list[dict[str, Any]]:
    """The results as the lists to download contain them; `marks` is None if nothing is known."""
    rows = [
      {"rank": rank, "score": round(match.score, 6), "path": self._name(match.row)}
      for rank, match in enumerate(matches, start=first)
    ]
    if marks is None:
      return rows
    return [row | {"correct": mark} for row, mark in zip(rows, marks, strict=True)]

  def _name(self, row: int) -> str:
    """The path of an image as text."""
    return text_of(self._index.paths[row])


def _data_address(image: PIL.Image.Image) -> str:
  """An image as an address that holds its own content."""
  buffer = io.BytesIO()
  image.save(buffer, "JPEG", quality=85)
  return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _range(query: Query) -> tuple[int, int]:
  """The ranks of a page, from 0, and one after the last of them."""
  top = min(max(query.top, 1), MAX_TOP)
  start = min((max(query.page, 1) - 1) * top, MAX_RESULTS)
  return start, min(start + top, MAX_RESULTS)


def make_page(searcher: Searcher, default_top: int = 20) -> Any:
  """Builds the page, a `gradio.Blocks`.

  Args:
    searcher: finds and shows the images.
    default_top: images per page, unless the address says otherwise.

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
    top = min(max(query.top, 1), MAX_TOP)
    return query.text, query.like, query.less, query.only, top, searcher.show(query)

  def search(
    text: str, image: PIL.Image.Image | None, like: Any, less: Any, only: str, top: Any
  ) -> tuple[str, str, str]:
    # Words with a similar image narrow it down; an upload starts another search.
    keys = ("", "") if image is not None else (like, less)
    like, less = (key if isinstance(key, str) else "" for key in keys)
    query = Query(text or "", like, less, only or "", _whole_number(top, default_top))
    return searcher.show(query, image), like, less

  with gradio.Blocks(
    title=searcher.title, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
  ) as page:
    title = html.escape(searcher.title)
    gradio.HTML(f"<h1>{title}</h1><p>{searcher.num_images:,} images. {NOTICE}</p>")
    text = gradio.Textbox(
      label="description", placeholder=searcher.examples[0], max_lines=3, elem_id="description"
    )
    with gradio.Accordion("Image, folders and number of results", open=False, elem_id="more"):
      image = gradio.Image(
        label="find images similar to this one, and to the description if there is one",
        type="pil", sources=["upload", "clipboard"], height=200, elem_id="image",
      )  # fmt: skip
      only = gradio.Textbox(
        label="only images whose path matches, such as */entrance/*", max_lines=1, elem_id="only"
      )
      top = gradio.Slider(1, MAX_TOP, value=default_top, step=1, label="images per page")
    button = gradio.Button("Search", variant="primary", elem_id="search")
    examples = " · ".join(
      f'<a href="{html.escape(Query(example, top=default_top).to_address())}" target="_self">'
      f"{html.escape(textwrap.shorten(example, 80, placeholder=' ...'))}</a>"
      for example in searcher.examples
    )
    gradio.HTML(f"<p>Examples: {examples} · Click an image to find similar ones.</p>")
    like, less = gradio.Textbox("", visible=False), gradio.Textbox("", visible=False)
    results = gradio.HTML(results_html.STYLE, elem_id="results")

    state = [text, like, less, only, top]
    page.load(open_address, None, [*state, results], api_visibility="private")
    for event in (text.submit, button.click):
      event(
        search, [text, image, like, less, only, top], [results, like, less],
        api_visibility="private",
      ).then(None, state, None, js=_SET_ADDRESS)  # fmt: skip
    page.load(None, None, None, js=_FOLLOW_HISTORY)
  return page


def serve(
  searcher: Searcher, host: str, port: int, default_top: int, names: Sequence[str] = ()
) -> None:
  """Serves the page until interrupted.

  Args:
    searcher: finds and shows the images.
    host: the address to listen on.
    port: the port.
    default_top: images per page, unless the address says otherwise.
    names: of the page, besides those that `request_guard.own_names` knows.

  Raises:
    UserError: Gradio is not installed, or the address cannot be used.
  """
  host = host.removeprefix("[").removesuffix("]")
  with tempfile.TemporaryDirectory(prefix="dgia_jax_page_") as folder:
    os.environ["GRADIO_TEMP_DIR"] = folder  # read when Gradio is imported
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    bypass_proxy(host)
    # Gradio opens uploads in any format that it finds there.
    PIL.Image.ID[:] = images_lib.decoded_formats()
    page = make_page(searcher, default_top)
    import gradio
    from starlette.middleware import Middleware

    searcher.search(Query("a person", top=default_top))  # compiles before the first visit
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops as Ctrl-C does
    # The default theme has the browser fetch its fonts from another server.
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
      page.launch(
        server_name=f"[{host}]" if ":" in host else host,  # as in an address
        server_port=port,
        show_error=False,
        quiet=False,
        theme=theme,
        max_file_size=MAX_UPLOAD,
        app_kwargs={
          "middleware": [
            Middleware(request_guard.RefuseFaultyRequests),
            Middleware(request_guard.RefuseForeignRequests, request_guard.own_names(host, names)),
            Middleware(request_guard.RefuseForeignFiles, folder),
          ]
        },
      )
    except OSError as error:
      raise UserError(f"--host={host} --port={port}: cannot be used ({error})") from error


def _whole_number(value: Any, default: int) -> int:
  """The value as an integer; programs can send anything, also what JSON cannot send back."""
  try:
    number = int(value)
  except (TypeError, ValueError, OverflowError):
    return default
  return number if abs(number) < 2**31 else default


def bypass_proxy(host: str) -> None:
  """Keeps Gradio's check of its own address from a proxy, which could not reach it."""
  for name in ("no_proxy", "NO_PROXY"):
    hosts = [entry for entry in os.environ.get(name, "").split(",") if entry]
    own = [entry for entry in ("localhost", "127.0.0.1", "::1", host) if entry not in hosts]
    os.environ[name] = ",".join(hosts + own)
