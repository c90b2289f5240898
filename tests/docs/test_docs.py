"""What the documentation shows works: examples are run, links lead somewhere."""

import ast
import io
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from dgia_jax.data import catalog
from dgia_jax.models import dual_encoder
from dgia_jax.reporting.console import Console
from dgia_jax.training import train
from tests.helpers import tiny_run
from tests.helpers.paths import ROOT

CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = sorted(
  [ROOT / "README.md", CONTRIBUTING, *(ROOT / "docs").glob("*.md"),
   *(ROOT / "experiments").glob("**/README.md")]
)  # fmt: skip

TRAIN = """
import sys
sys.path[:0] = sys.argv[1:3]
from tests.docs import test_docs
print(test_docs.train_here())
"""


def blocks(page, language):
  """The fenced blocks of a page, in order."""
  return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def train_here():
  """Trains a few steps with the package that is imported; names of the losses in the log."""
  # One epoch of five steps; the process may have several devices.
  config = tiny_run.config(num_epochs=1, mesh__data=-1)
  folder = pathlib.Path("run")
  train.train(config, folder, Console(file=io.StringIO()), tiny_run.splits())
  lines = tiny_run.metrics(folder)
  last = [line for line in lines if line["split"] == "train"][-1]
  return sorted(name for name in last if name.startswith("loss_") and last[name] > 0)


def strings_of_the_program():
  """Every string in the source, what is filled in replaced by a NUL."""
  found = []
  for path in [*(ROOT / "dgia_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")]:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Constant) and isinstance(node.value, str):
        found.append(node.value)
      elif isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
        found.append("".join(parts))
  return found


def test_messages_of_troubleshooting_are_the_programs():
  strings = strings_of_the_program()
  page = (ROOT / "docs" / "troubleshooting.md").read_text()
  # Quoted at the start of an item, and not the name of a metric.
  messages = [" ".join(text.split()) for text in re.findall(r"^- `([^`]+)`", page, re.MULTILINE)]
  messages = [text for text in messages if " " in text]
  assert len(messages) > 30
  for message in messages:
    # These stand for what the program fills in.
    filled_in = r"\.\.\.|\b[A-Z]+\b|v5e:16x16|the loss \(or gradient_norm\) is nan|no reid_raw.json"
    parts = [part.strip(" :;)") for part in re.split(filled_in, message)]
    for part in parts:
      assert len(part) < 7 or any(part in string for string in strings), f"{part!r} in {message!r}"


@pytest.mark.integration
def test_examples_of_contributing_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  # What the examples add must not outlive them.
  monkeypatch.setattr(catalog, "LAYOUTS", dict(catalog.LAYOUTS))
  monkeypatch.setattr(dual_encoder, "SIZES", dict(dual_encoder.SIZES))
  monkeypatch.setattr(dual_encoder, "ImageTower", dual_encoder.ImageTower)
  examples = blocks(CONTRIBUTING, "python")
  assert len(examples) == 6
  names = {}
  for example in examples:
    exec(compile(example, "CONTRIBUTING.md", "exec"), names)


@pytest.mark.integration
def test_the_patch_that_adds_a_loss_applies_and_trains(tmp_path):
  (patch,) = blocks(CONTRIBUTING, "diff")
  ignore = shutil.ignore_patterns("__pycache__")
  for folder in ("dgia_jax", "configs"):
    shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)
  done = subprocess.run(
    ["patch", "-p1", "--no-backup-if-mismatch"], input=patch, cwd=tmp_path,
    capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout
  done = subprocess.run(
    [sys.executable, "-c", TRAIN, str(tmp_path), str(ROOT)],
    cwd=tmp_path, capture_output=True, text=True, timeout=300,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  assert "loss_margin" in done.stdout and "loss_itc" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_exist(page):
  text = page.read_text()
  links = re.findall(r"\]\(([^)\s]+)\)", text)
  links += re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)
  for link in links:
    if not link.startswith("http"):
      file, _, anchor = link.partition("#")
      target = (page.parent / file).resolve() if file else page
      assert target.exists(), link
      if anchor:
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
        slug = lambda text: re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        assert anchor in map(slug, headings), link
