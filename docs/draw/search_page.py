"""Takes the picture of the search page for docs/search.md: the page in a browser, drawn people.

Command: python -m docs.draw.search_page
Needs:   pip install -e ".[serve]" playwright, and a Chromium
Takes:   a minute
Writes:  docs/images/search_page.png
"""

import argparse
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

from PIL import Image

from dgia_jax.data.synth_pedes import Settings
from dgia_jax.data.synth_pedes.generate import draw_person

PEOPLE = 90  # of the test split
DETAIL = 4  # enlargement of the people, relative to the training images
MODEL = "mini"
QUERY = "a woman in a red coat with a backpack"
COLOURS = 256  # take a third of the space of all, without a visible difference


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", default="docs/images/search_page.png")
  parser.add_argument("--width", type=int, default=1280, help="of the window, in pixels")
  parser.add_argument("--height", type=int, default=1080, help="of the window, in pixels")
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    images, index = pathlib.Path(folder, "images"), pathlib.Path(folder, "synth_pedes")
    draw_people(Settings(), images, PEOPLE, DETAIL)
    search = [sys.executable, "-m", "dgia_jax.search"]
    make = ["index", "--run", MODEL, "--images", str(images), "--out", str(index)]
    subprocess.run([*search, *make], check=True)
    port = free_port()
    server = subprocess.Popen([*search, "serve", "--index", str(index), "--port", str(port)])
    try:
      wait_for(port, server)
      take_picture(f"http://127.0.0.1:{port}", flags.out, flags.width, flags.height)
    finally:
      server.terminate()
      server.wait()
  print(f"wrote {flags.out}")


def draw_people(settings: Settings, folder: pathlib.Path, people: int, detail: int) -> None:
  """Writes all views of some test people, enlarged, as camera1/0000.png and so on."""
  large = settings.replace(height=settings.height * detail, width=settings.width * detail)
  for person in range(people):
    for view, record in enumerate(draw_person(large, "test", person)):
      path = folder / f"camera{view + 1}" / f"{person:04}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(record["image"]).save(path)


def free_port() -> int:
  """A port that no program of this machine uses."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


def wait_for(port: int, server: subprocess.Popen) -> None:
  """Returns when a starting server answers; raises RuntimeError if it ends instead."""
  while server.poll() is None:
    try:
      socket.create_connection(("127.0.0.1", port), timeout=1).close()
      return
    except OSError:
      time.sleep(0.5)
  raise RuntimeError(f"the server ended with exit code {server.returncode}")


def take_picture(address: str, out: pathlib.Path | str, width: int, height: int) -> None:
  """Writes what a window of this size shows after a search."""
  from playwright.sync_api import sync_playwright

  chromium = shutil.which("chromium") or shutil.which("google-chrome")
  with sync_playwright() as browsers:
    browser = browsers.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(address, timeout=120_000)
    page.locator("#description textarea, #description input").first.fill(QUERY)
    page.locator("#search").click()
    page.locator("#results figure").first.wait_for(timeout=120_000)
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)  # fading ends
    page.screenshot(path=out)
    browser.close()
  Image.open(out).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(
    out, optimize=True
  )


if __name__ == "__main__":
  main()
