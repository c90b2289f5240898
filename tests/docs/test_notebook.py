"""The notebook runs from top to bottom and shows what its text says."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

NOTEBOOK = ROOT / "docs" / "notebooks" / "first_search.ipynb"
# Shows figures without a window, and counts them.
BEFORE = """
import matplotlib
matplotlib.use("agg")
"""
AFTER = """
figures = [plt.figure(number) for number in plt.get_fignums()]
for figure in figures:
  figure.savefig(f"figure_{figure.number}.png")
"""


def cells(kind):
  content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
  return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == kind]


def test_its_links_lead_to_pages():
  targets = [
    target.split(")")[0]
    for text in cells("markdown")
    for target in text.split("](")[1:]
    if not target.startswith("http")
  ]
  assert targets
  for target in targets:
    assert (NOTEBOOK.parent / target).is_file(), target


@pytest.mark.integration
def test_it_runs_from_top_to_bottom(tmp_path):
  """On fewer people and epochs than in the notebook: its cells are run, its scores are not read."""
  code = "\n".join(cells("code"))
  for before, after in (
    ('"dataset.options.train_people": 1000', '"dataset.options.train_people": 60'),
    ('"num_epochs": 6', '"num_epochs": 1'),
    ('"local_association.start_epoch": 6', '"local_association.start_epoch": 1'),
    ('"global_association.start_epoch": 6', '"global_association.start_epoch": 2'),
  ):
    assert before in code
    code = code.replace(before, after)
  script = tmp_path / "notebook.py"
  script.write_text(BEFORE + code + AFTER)
  environment = os.environ | {"PYTHONPATH": str(ROOT), "TFDS_DATA_DIR": str(tmp_path / "datasets")}
  result = subprocess.run(
    [sys.executable, script.name], cwd=tmp_path, env=environment, capture_output=True, text=True
  )
  assert result.returncode == 0, result.stderr[-3000:]
  assert "text to image: R@1" in result.stdout and "images, 64 numbers each" in result.stdout
  assert sorted(file.name for file in tmp_path.glob("figure_*.png")) == [
    f"figure_{number}.png" for number in (1, 2, 3, 4)
  ]


@pytest.mark.slow
def test_a_kernel_runs_it_as_it_is(tmp_path, monkeypatch):
  """With all its people and epochs; it is stored without outputs."""
  nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
  pytest.importorskip("ipykernel")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "datasets"))
  monkeypatch.delenv("XLA_FLAGS", raising=False)  # one device, as a reader has
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  assert not any(cell.get("outputs") for cell in notebook.cells)
  place = {"metadata": {"path": str(tmp_path)}}
  nbclient.NotebookClient(notebook, timeout=540, kernel_name="python3", resources=place).execute()
  outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
  assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
  printed = "".join(output.get("text", "") for output in outputs)
  score, chance = (
    float(re.search(pattern, printed)[1]) for pattern in (r"R@1 ([\d.]+)", r"chance R@1: ([\d.]+)")
  )
  assert score > 5 * chance
