"""The web page: what its buttons find, and the page itself in a browser where there is one."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from dgia_jax.errors import UserError
from dgia_jax.search import __main__ as search_cli
from dgia_jax.search import index as index_lib
from dgia_jax.search import web_page
from dgia_jax.search.retriever import Retriever

pytestmark = pytest.mark.integration


@pytest.fixture
def index(known_run, image_folder, tmp_path):
  index_lib.build(Retriever.from_run(known_run), known_run, image_folder, tmp_path / "i")
  return tmp_path / "i"


def test_what_the_buttons_find(index, image_folder):
  retriever, opened = search_cli.open_index(index)
  searcher = web_page.Searcher(retriever, opened)
  shown, rows = searcher.by_text("a red coat", 4)
  (scores,), (expected,) = opened.search(retriever.embed_texts(["a red coat"]), 4)
  assert rows == expected.tolist()
  assert [label for _, label in shown] == [
    f"{score:.3f}  {opened.paths[row]}" for score, row in zip(scores, expected, strict=True)
  ]
  assert all(max(image.size) <= 4 * web_page.HEIGHT for image, _ in shown)
  similar, similar_rows = searcher.like(rows, 2, 3)
  assert similar_rows[0] == rows[2] and similar[0][1].startswith("1.000")
  assert searcher.by_text("  ", 4) == ([], [])
  (image_folder / opened.paths[rows[0]]).unlink()
  assert searcher.by_text("a red coat", 4)[1] == rows[1:]


def test_without_gradio_one_line(index, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "gradio", None)
  with pytest.raises(UserError, match=r"-e '\.\[serve\]'"):
    web_page.make_page(None, 1)
  assert search_cli.main(["serve", "--index", str(index)]) == 2
  assert capsys.readouterr().err.startswith("error: ")


def test_the_page_tells_nobody_elsewhere():
  pytest.importorskip("gradio")
  page = web_page.make_page(web_page.Searcher(None, None), 1)
  assert not page.analytics_enabled and page.delete_cache == (3600, 3600)


def test_the_page_in_a_browser(index, tmp_path):
  """Type a description, see images, click one, see more like it; other files cannot be had, and
  nothing stays behind."""
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
  server = subprocess.Popen(
    [*command, "--port", str(port), "--top", "4"], env=os.environ | {"TMPDIR": str(kept)}
  )
  try:
    address = f"http://127.0.0.1:{port}"
    _wait_for(address, server)
    with playwright.sync_playwright() as browsers:
      flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
      page = browsers.chromium.launch(executable_path=chromium, args=flags).new_page()
      page.goto(address, timeout=60_000)
      page.locator("#description textarea, #description input").first.fill("a red coat")
      page.locator("#search").click()
      pictures = page.locator("#found .thumbnail-item, #found .thumbnail-lg")
      pictures.nth(3).wait_for(timeout=60_000)
      (private,) = kept.glob("dgia_jax_page_*")
      assert list(private.rglob("*.jpeg")) and private.stat().st_mode & 0o77 == 0
      label = pictures.nth(2).inner_text().split()[-1]
      pictures.nth(2).click()
      page.get_by_text("1.000").first.wait_for(timeout=60_000)
      assert label in pictures.first.inner_text()
      page.screenshot(path=tmp_path / "page.png")
    for path in (index / "index.json", index.parent / "images" / "notes.txt", "/etc/hostname"):
      with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/gradio_api/file={path}", timeout=20)
      assert refused.value.code in (403, 404)
  finally:
    server.terminate()
    server.wait(timeout=30)
  assert not list(kept.rglob("*.jpeg"))


def _wait_for(address, server):
  for _ in range(240):
    assert server.poll() is None, "the server ended"
    try:
      urllib.request.urlopen(address, timeout=5).close()
      return
    except OSError:
      time.sleep(0.5)
  raise AssertionError("the server does not answer")
