"""Exported towers give the retriever's features, without the code of the model."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest
from PIL import Image

from dgia_jax import convert
from dgia_jax.errors import UserError
from dgia_jax.models import dual_encoder
from dgia_jax.models import pixels as pixels_lib
from dgia_jax.search import standalone
from dgia_jax.search.retriever import Retriever
from tests.helpers.known_run import CAPTIONS, IMAGE_SIZE

# The code of the card, in a process that can import neither this package nor Flax.
PROGRAM = """
import sys
class Block:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in ("dgia_jax", "flax"):
      raise ModuleNotFoundError("blocked: " + name)
sys.meta_path.insert(0, Block())
FOLDER, captions, paths = {folder!r}, {captions!r}, {paths!r}
{code}
np.savez(FOLDER + "/features.npz", image=image_features, text=text_features)
"""


def write_images(folder):
  """Three images of other sizes than the model's."""
  paths = [folder / f"{number}.png" for number in range(3)]
  for number, path in enumerate(paths):
    pixels = np.random.default_rng(number).integers(0, 255, (70 + number, 30, 3), np.uint8)
    Image.fromarray(pixels).save(path)
  return paths


def features_by_the_card(folder, paths):
  """Runs the Python of a converted folder's README.md, in a process of its own."""
  card = (folder / convert.CARD).read_text()
  code = card.split("```python\n")[1].split("```")[0]
  program = PROGRAM.format(
    folder=str(folder), captions=CAPTIONS, paths=[*map(str, paths)], code=code
  )
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return np.load(folder / "features.npz")


@pytest.mark.integration
@pytest.mark.parametrize("form", standalone.FORMATS)
def test_the_card_of_a_format_gives_the_retrievers_features(known_run, tmp_path, form):
  if form == "onnx":
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")
  convert.convert(known_run, tmp_path / "out", form=form)
  paths = write_images(tmp_path)
  features = features_by_the_card(tmp_path / "out", paths)
  retriever = Retriever.open(known_run, batch_size=8)
  np.testing.assert_allclose(features["image"], retriever.embed_images(paths), atol=1e-5)
  np.testing.assert_allclose(features["text"], retriever.embed_texts(CAPTIONS), atol=1e-5)


def test_the_description_is_that_of_the_programs(known_run, tmp_path):
  convert.convert(known_run, tmp_path, "last", form="stablehlo")
  about = json.loads((tmp_path / standalone.DESCRIPTION).read_text())
  assert about["temperature"] == 0.05
  assert about["image_encoder"]["resize_to"] == {"height": 64, "width": 32, "filter": "bilinear"}
  assert about["image_encoder"]["normalised_inside"]["mean"] == [*pixels_lib.CLIP.mean]
  for tower in ("image_encoder", "text_encoder"):
    content = (tmp_path / about[tower]["file"]).read_bytes()
    program = jax.export.deserialize(bytearray(content))
    assert program.platforms == tuple(about["platforms"]) == ("cpu", "cuda", "tpu")
    for (aval,), side in ((program.in_avals, "input"), (program.out_avals, "output")):
      assert [*map(str, aval.shape)] == [*map(str, about[tower][side]["shape"])]
      assert str(aval.dtype) == about[tower][side]["dtype"]
  listed = (tmp_path / "SHA256SUMS").read_text()
  assert "image_encoder.stablehlo" in listed and "tokenizer.json" in listed


@pytest.mark.parametrize("form, package", [("onnx", "jax2onnx"), ("stablehlo", "flatbuffers")])
def test_a_missing_package_is_one_line(known_run, tmp_path, monkeypatch, capsys, form, package):
  monkeypatch.setitem(sys.modules, package, None)
  argv = ["--run", str(known_run), "--out", str(tmp_path), "--format", form]
  assert convert.main(argv) == 2
  error = capsys.readouterr().err
  assert f"needs {package}: pip install 'dgia_jax[{form}]'" in error and error.count("\n") == 1
  assert not list(tmp_path.iterdir())


def test_a_tower_that_no_file_can_hold_is_refused(tmp_path):
  # A view: the array takes no memory.
  large = np.broadcast_to(np.float32(0), (2**29, 1))
  params = {"image": {"projection": large}, "text": {}}
  with pytest.raises(UserError, match="image tower has 2.0 GiB.*--format=transformers"):
    standalone.write_folder(
      pathlib.Path(tmp_path / "out"),
      "stablehlo",
      params,
      dual_encoder.SIZES["tiny"],
      image_size=IMAGE_SIZE,
      resize="bilinear",
      temperature=0.02,
      tokenizer=None,
    )
  assert not (tmp_path / "out").exists()
