"""The web page: its searches, and the page in a browser if there is one."""

import base64
import csv
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import types
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from dgia_jax.errors import UserError
from dgia_jax.search import __main__ as search_cli
from dgia_jax.search import (
  commands,
  gallery,
  identities,
  index_files,
  request_guard,
  web_page,
)
from dgia_jax.search import index as index_lib
from dgia_jax.search.query import Query, combine, image_key
from dgia_jax.search.retriever import Retriever
from tests.helpers import known_run as known_run_lib
from tests.helpers.known_run import draw_image

pytestmark = pytest.mark.integration


@pytest.fixture
def index(known_run, image_folder, tmp_path):
  index_lib.build(Retriever.from_run(known_run), known_run, image_folder, tmp_path / "i")
  return tmp_path / "i"


def open_searcher(index):
  retriever, opened = commands.open_index(index)
  return web_page.Searcher(retriever, opened), retriever, opened


def test_searches_by_text_image_and_both(index, image_folder):
  searcher, retriever, opened = open_searcher(index)
  text_D = retriever.embed_texts("a red coat")[0]
  matches_of = lambda *more, less=None, without=(), only="": opened.matches(
    combine(np.stack(more), less), 4, without, only, fold=True
  )
  matches = searcher.search(Query("a red coat", top=4))
  assert matches == matches_of(text_D) and len(matches) == 4
  row, path = matches[2].row, matches[2].path
  row_D, key = opened.features([row])[0], image_key(row, opened.paths[row])
  assert searcher.search(Query(like=key, top=4)) == matches_of(row_D, without=[path])
  upload = Image.open(image_folder / "b" / "c" / "2.png")
  image_D = retriever.embed_images(upload)[0]
  assert searcher.search(Query(top=4), upload) == matches_of(image_D)
  assert searcher.search(Query("a red coat", top=4), upload) == matches_of(text_D, image_D)
  less = searcher.search(Query("a red coat", less=key, top=4))
  assert less == matches_of(text_D, less=row_D[None], without=[path])
  only = searcher.search(Query("a red coat", only="b/*", top=4))
  assert only == matches_of(text_D, only="b/*") and only
  assert all(match.path.is_relative_to(image_folder / "b") for match in only)
  assert searcher.search(Query("  ", top=4)) == [] == searcher.search(Query(like="99999999"))
  assert searcher.search(Query("a red coat", only="nowhere/*")) == []


def test_notes_say_what_else_a_search_depends_on(index):
  searcher, _, opened = open_searcher(index)
  page = searcher.show(Query("a red coat", like="0", less="1", only="*", top=3))
  assert f"Images similar to {opened.paths[0]} " in page and f"not like {opened.paths[1]} " in page
  assert "?q=a+red+coat&amp;less=1&amp;only=%2A&amp;top=3" in page  # removes the likeness
  assert web_page.UNKNOWN_WORDS not in page
  assert web_page.UNKNOWN_WORDS in searcher.show(Query("xylophonist zzgrbl", top=3))
  assert "No image was found." in searcher.show(Query("a red coat", only="nowhere/*"))


def test_a_picture_that_is_stored_twice_is_shown_once(index, known_run, image_folder):
  original = image_folder / "b" / "c" / "2.png"
  (image_folder / "copies").mkdir()
  shutil.copy(original, image_folder / "copies" / "two.png")
  index_lib.build(Retriever.from_run(known_run), known_run, image_folder, index)
  searcher, _, opened = open_searcher(index)
  row = list(opened.paths).index("b/c/2.png")
  match, *others = searcher.search(Query(top=50), Image.open(original))
  assert {match.path, *match.copies} == {original, image_folder / "copies" / "two.png"}
  assert len(others) == len(opened) - 2 and not any(other.copies for other in others)
  assert "and 1 copy" in searcher.show(Query(top=3), Image.open(original))
  unfolded = opened.matches(opened.features([row])[0], 50)
  assert len(unfolded) == len(opened) and not any(match.copies for match in unfolded)


def test_the_histogram_counts_every_image(index):
  searcher, retriever, opened = open_searcher(index)
  text_D = retriever.embed_texts("a red coat")[0]
  counts = opened.histogram(text_D)
  cosines = opened.features(opened.rows) @ text_D
  np.testing.assert_array_equal(counts, np.histogram(cosines, gallery.BINS, (-1, 1))[0])
  page = searcher.show(Query("a red coat", top=4))
  assert page.count("<rect ") >= np.count_nonzero(counts)
  assert f"Similarity of all {len(opened)} images" in page


def test_the_shown_results(index, image_folder):
  searcher, _, opened = open_searcher(index)
  matches = searcher.search(Query("a red coat", top=4))
  page = searcher.show(Query("a red coat", top=4))
  assert page.count("<img ") == 4 and "?like=" in page
  csv_text, json_text = (
    base64.b64decode(content).decode() for content in re.findall(r'href="data:[^"]*,([^"]*)"', page)
  )
  listed = [
    {"rank": rank, "score": round(match.score, 6), "path": opened.paths[match.row]}
    for rank, match in enumerate(matches, start=1)
  ]
  assert json.loads(json_text) == listed
  as_text = [{name: str(value) for name, value in row.items()} for row in listed]
  assert list(csv.DictReader(io.StringIO(csv_text))) == as_text
  captions = re.findall(r'<span class="rank">(\d+)</span>([\d.-]+)</span>.*?<br>([^<]*)<', page)
  assert captions == [
    (str(row["rank"]), f"{match.score:.3f}", row["path"])
    for row, match in zip(listed, matches, strict=True)
  ]
  assert "correct" not in page.partition("</style>")[2]
  matches[0].path.unlink()
  page = searcher.show(Query("a red coat", top=4))
  assert page.count("<img ") == 3 and "removed since it was indexed" in page


def test_pages_continue_the_ranking(index, monkeypatch):
  searcher, _, opened = open_searcher(index)
  whole = searcher.search(Query("a red coat", top=50))
  assert len(whole) == len(opened) == 10
  pages = [searcher.search(Query("a red coat", top=4, page=page)) for page in (1, 2, 3, 4)]
  assert pages == [whole[:4], whole[4:8], whole[8:], []]
  shown = [searcher.show(Query("a red coat", top=4, page=page)) for page in (1, 2, 3, 4)]
  following = ["Next page" in page for page in shown]
  assert following == [True, True, False, False]
  assert ["Previous page" in page for page in shown] == [False, True, True, True]
  assert "?q=a+red+coat&amp;p=3&amp;top=4" in shown[1] and "?q=a+red+coat&amp;top=4" in shown[1]
  assert re.findall(r'<span class="rank">(\d+)<', shown[2]) == ["9", "10"]
  assert "No image was found." in shown[3]
  whole_page = searcher.show(Query("a red coat", top=10))
  assert "Next page" not in whole_page and "Page 1" not in whole_page
  upload = Image.new("RGB", (10, 20))
  assert "one page" in searcher.show(Query(top=4), upload)
  monkeypatch.setattr(web_page, "MAX_RESULTS", 6)
  assert searcher.search(Query("a red coat", top=4, page=2)) == whole[4:6]
  assert "Next page" not in searcher.show(Query("a red coat", top=4, page=2))
  assert searcher.search(Query("a red coat", top=4, page=10**9)) == []


def test_correct_results_are_marked_if_the_query_is_known(index, image_folder, tmp_path):
  file = known_run_lib.write_annotations(tmp_path / "annotations.json", image_folder)
  annotated = identities.read_annotations(str(file), image_folder)
  index_files.write_annotated(index, annotated)
  searcher, _, opened = open_searcher(index)
  person_of_path = {image.path: image.person for image in annotated}
  query = Query("person 3 wears red.", top=10)
  page = searcher.show(query)
  paths = [opened.paths[match.row] for match in searcher.search(query)]
  expected = [person_of_path[path] == 0 for path in paths]
  figures = re.findall(r"<figure.*?</figure>", page)
  assert ['<figure class="correct">' in figure for figure in figures] == expected
  assert ["✓ correct" in figure for figure in figures] == expected
  (json_file,) = re.findall(r'href="data:application/json;base64,([^"]*)"', page)
  assert [row["correct"] for row in json.loads(base64.b64decode(json_file))] == expected
  key = image_key(list(opened.paths).index("a/3.png"), "a/3.png")
  assert searcher.show(Query(like=key, top=10)).count("✓ correct") == 3  # it is left out itself
  for unknown in (Query("a red coat", top=10), Query("a red coat", like=key, top=10)):
    assert "✓ correct" not in searcher.show(unknown)
  assert "✓ correct" not in searcher.show(query, Image.open(image_folder / "a" / "3.png"))
  assert set(searcher.examples) < {image.captions[0] for image in annotated}


def test_the_page_is_named_after_the_index(index, tmp_path):
  pytest.importorskip("gradio")
  named = index.rename(tmp_path / "<b>street")
  searcher, _, _ = open_searcher(named)
  assert searcher.title == "Find a person in <b>street"
  assert searcher.examples == web_page.EXAMPLES
  page = web_page.make_page(searcher)
  assert page.title == searcher.title
  shown = [block.value for block in page.blocks.values() if hasattr(block, "value")]
  assert any("<h1>Find a person in &lt;b&gt;street</h1><p>10 images." in str(v) for v in shown)


def test_large_images_are_reduced(known_run, tmp_path):
  size = (3 * web_page.HEIGHT, 2 * web_page.HEIGHT)
  (tmp_path / "images").mkdir()
  Image.new("RGB", size, "red").save(tmp_path / "images" / "large.png")
  index_lib.build(Retriever.from_run(known_run), known_run, tmp_path / "images", tmp_path / "i")
  page = open_searcher(tmp_path / "i")[0].show(Query("red"))
  (content,) = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', page)
  with Image.open(io.BytesIO(base64.b64decode(content))) as image:
    assert image.width <= 2 * web_page.HEIGHT and image.height == web_page.HEIGHT


def test_names_of_files_are_text_on_the_page(known_run, tmp_path, rng):
  images = tmp_path / "images"
  draw_image(images / "<b>&.png", rng)
  draw_image(images / os.fsdecode(b"caf\xe9.png"), rng)
  index_lib.build(Retriever.from_run(known_run), known_run, images, tmp_path / "i")
  page = open_searcher(tmp_path / "i")[0].show(Query("red"))
  assert "<b>" not in page and "&lt;b&gt;&amp;.png" in page
  page.encode("utf-8")


def test_the_own_address_is_not_asked_through_a_proxy(monkeypatch):
  for name in ("no_proxy", "NO_PROXY"):
    monkeypatch.setenv(name, "example.org")
  web_page.bypass_proxy("192.0.2.1")
  expected = {"example.org", "localhost", "127.0.0.1", "::1", "192.0.2.1"}
  assert (
    set(os.environ["no_proxy"].split(",")) == set(os.environ["NO_PROXY"].split(",")) == expected
  )


def test_without_gradio_one_line(index, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "gradio", None)
  for name in ("no_proxy", "NO_PROXY", "GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
    monkeypatch.setenv(name, "")
  with pytest.raises(UserError, match=r"dgia_jax\[serve\]"):
    web_page.make_page(open_searcher(index)[0])
  assert search_cli.main(["serve", "--index", str(index)]) == 2
  assert capsys.readouterr().err.startswith("error: ")


def test_uploads_start_no_other_program(index, monkeypatch, tmp_path):
  """Gradio opens them with Pillow, which would give an EPS file to Ghostscript."""
  monkeypatch.setitem(sys.modules, "gradio", None)
  for name in ("no_proxy", "NO_PROXY", "GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
    monkeypatch.setenv(name, "")
  Image.new("RGB", (4, 4)).save(tmp_path / "x.png", format="EPS")
  monkeypatch.setattr(Image, "ID", list(Image.ID))
  with pytest.raises(UserError):
    web_page.serve(open_searcher(index)[0], "127.0.0.1", 0, 20)
  with pytest.raises(UnidentifiedImageError):
    Image.open(tmp_path / "x.png")


class Idle(web_page.Searcher):
  """Finds nothing, without a model."""

  def __init__(self):
    pass

  def search(self, query, image=None):
    return []


def launched_with(monkeypatch, *arguments):
  """How Gradio is started, with stand-ins for it and Starlette, which the tests do without."""
  launched = {}
  page = types.SimpleNamespace(launch=lambda **options: launched.update(options))
  theme = types.SimpleNamespace(Default=lambda **fonts: None)
  middleware = types.SimpleNamespace(Middleware=lambda *made: made)
  monkeypatch.setitem(sys.modules, "gradio", types.SimpleNamespace(themes=theme))
  monkeypatch.setitem(sys.modules, "starlette", types.SimpleNamespace(middleware=middleware))
  monkeypatch.setitem(sys.modules, "starlette.middleware", middleware)
  monkeypatch.setattr(web_page, "make_page", lambda *arguments: page)
  monkeypatch.setattr(web_page.signal, "signal", lambda *arguments: None)
  monkeypatch.setattr(Image, "ID", list(Image.ID))
  for name in ("no_proxy", "NO_PROXY", "GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
    monkeypatch.setenv(name, "")
  web_page.serve(Idle(), *arguments)
  return launched


def test_the_page_is_served_behind_its_guards(monkeypatch):
  launched = launched_with(monkeypatch, "photos.example", 7860, 20, ["street.example"])
  assert launched["max_file_size"] == "50mb" and launched["server_name"] == "photos.example"
  guards = {guard: arguments for guard, *arguments in launched["app_kwargs"]["middleware"]}
  assert list(guards) == [
    request_guard.RefuseFaultyRequests,
    request_guard.RefuseForeignRequests,
    request_guard.RefuseForeignFiles,
  ]
  names = guards[request_guard.RefuseForeignRequests][0]
  assert {"photos.example", "street.example"} < names
  assert guards[request_guard.RefuseForeignFiles] == [os.environ["GRADIO_TEMP_DIR"]]


@pytest.mark.parametrize("host", ["::1", "[::1]", "::", "[::]"])
def test_the_page_listens_on_addresses_of_version_6(monkeypatch, host):
  launched = launched_with(monkeypatch, host, 7860, 20)
  plain = host.strip("[]")
  assert launched["server_name"] == f"[{plain}]"
  assert plain in os.environ["NO_PROXY"].split(",") and "[" not in os.environ["NO_PROXY"]


def test_the_page_reports_nothing(index):
  pytest.importorskip("gradio")
  page = web_page.make_page(open_searcher(index)[0])
  assert not page.analytics_enabled and page.delete_cache == (3600, 3600)


@pytest.mark.parametrize("width, height", [(1280, 800), (390, 844)])
def test_the_page_in_a_browser(index, image_folder, tmp_path, width, height):
  """Behind a proxy: search, click a result, see similar images, on a desktop and on a phone."""
  file = known_run_lib.write_annotations(tmp_path / "annotations.json", image_folder)
  index_files.write_annotated(index, identities.read_annotations(str(file), image_folder))
  pytest.importorskip("gradio")
  playwright = pytest.importorskip("playwright.sync_api")
  chromium = shutil.which("chromium") or shutil.which("google-chrome")
  if not chromium:
    pytest.skip("needs a Chromium")
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  command = [sys.executable, "-m", "dgia_jax.search", "serve", "--index", str(index)]
  kept = tmp_path / "kept"
  kept.mkdir()
  proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy"), "http://127.0.0.1:9")
  server = subprocess.Popen(
    [*command, "--port", str(port), "--top", "4"],
    env=os.environ | proxies | {"TMPDIR": str(kept)},
  )
  address = f"http://127.0.0.1:{port}"
  try:
    _wait_for(address, server)
    with playwright.sync_playwright() as browsers:
      flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
      browser = browsers.chromium.launch(executable_path=chromium, args=flags)
      page = browser.new_page(viewport={"width": width, "height": height})
      requests = []
      page.on("request", lambda request: requests.append(request.url))
      page.goto(address, timeout=60_000)
      page.locator("#description textarea, #description input").first.fill("a red coat")
      page.locator("#search").click()
      tiles = page.locator("#results figure")
      tiles.nth(3).wait_for(timeout=60_000)
      page.wait_for_url("**/?q=a+red+coat&top=4", timeout=60_000)
      assert page.evaluate("document.documentElement.scrollWidth") == width
      for number in range(4):  # each rank is shown, and the whole image
        assert tiles.nth(number).inner_text().startswith(str(number + 1))
        box = tiles.nth(number).bounding_box()
        assert 0 <= box["x"] and box["x"] + box["width"] <= width
      assert page.locator("#results img").first.evaluate("e => getComputedStyle(e).objectFit") == (
        "contain"
      )
      picture = page.locator("#results img").nth(1)
      small = picture.bounding_box()
      page.locator("#results .zoom").nth(1).focus()
      page.keyboard.press("Space")
      assert picture.bounding_box() == {"x": 0, "y": 0, "width": width, "height": height}
      page.mouse.click(width / 2, height / 2)
      assert picture.bounding_box() == small
      page.screenshot(path=tmp_path / f"{width}.png", full_page=True)
      name = tiles.nth(2).inner_text().split()[-1]
      tiles.nth(2).locator("a").first.click()
      page.get_by_text(f"Images similar to {name}").wait_for(timeout=60_000)
      assert "like=" in page.url
      page.reload()
      page.get_by_text(f"Images similar to {name}").wait_for(timeout=60_000)
      page.goto(f"{address}/?q=a+red+coat&top=4")
      page.get_by_text("Page 1", exact=True).wait_for(timeout=60_000)
      page.locator("#description textarea, #description input").first.fill("Person 3 wears red.")
      page.locator("#search").click()
      page.get_by_text("✓ correct").first.wait_for(timeout=60_000)
      page.wait_for_url("**/?q=Person+3*", timeout=60_000)
      page.go_back()  # shows the results of the words again
      page.get_by_text("✓ correct").first.wait_for(state="detached", timeout=60_000)
      page.get_by_text("Page 1", exact=True).wait_for(timeout=60_000)
      assert page.url.endswith("/?q=a+red+coat&top=4")
      assert page.locator("#results .mark").count() == 0
      page.get_by_text("Next page").click()
      page.get_by_text("Page 2", exact=True).wait_for(timeout=60_000)
      assert tiles.first.inner_text().startswith("5")
      page.locator("a", has_text="Person ").first.click()  # an example, which is a caption
      page.get_by_text("✓ correct").first.wait_for(timeout=60_000)
      frame = page.locator("#results figure.correct > a").first
      assert frame.evaluate("e => getComputedStyle(e).outlineColor") == "rgb(22, 163, 74)"
      page.screenshot(path=tmp_path / f"{width}_marked.png", full_page=True)
      hosts = {urllib.parse.urlsplit(url).hostname for url in requests}
      assert hosts <= {"127.0.0.1", None}
      browser.close()
    (private,) = kept.glob("dgia_jax_page_*")
    assert private.stat().st_mode & 0o77 == 0
    for path in (index / "index.json", index.parent / "images" / "notes.txt", "/etc/hostname"):
      with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/gradio_api/file={path}", timeout=20)
      assert refused.value.code in (403, 404)
  finally:
    server.terminate()
    server.wait(timeout=30)
  assert not list(kept.glob("dgia_jax_page_*"))


def _wait_for(address, server):
  for _ in range(240):
    assert server.poll() is None, "the server ended"
    try:
      urllib.request.urlopen(address, timeout=5).close()
      return
    except OSError:
      time.sleep(0.5)
  raise AssertionError("the server does not answer")
