"""Datasets of synthetic people on disk."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from dgia_jax.data.synth_pedes import Settings, generate
from dgia_jax.data.synth_pedes.builder import SynthPedes
from dgia_jax.errors import UserError
from tests.helpers.paths import ROOT


def test_build_and_read_back(tmp_path, monkeypatch):
  from dgia_jax.data.synth_pedes import builder as module

  make_builder = module.make_builder
  monkeypatch.setattr(module, "_SHARD_IMAGES", 8)  # two people each: 2 + 2 + 1
  change = dict(
    train_people=5, val_people=2, test_people=2, images_per_person=4, captions_per_image=2,
    height=32, width=16,
  )  # fmt: skip
  builder = make_builder(str(tmp_path), **change)
  builder.download_and_prepare()
  drawn = {r["image_path"]: r for r in generate(Settings(**change), "train")}
  source = builder.as_data_source("train")
  assert len(source) == 20 and len(builder.as_data_source("test")) == 8
  assert len(list(pathlib.Path(builder.data_dir).glob("*-train.array_record-*"))) == 3
  assert [example["image_path"].decode() for example in source] == list(drawn)
  for example in source:
    record = drawn.pop(example["image_path"].decode())
    assert np.array_equal(example["image"], record["image"])  # PNG keeps every pixel
    assert [c.decode() for c in example["captions"]] == record["captions"]
    assert example["person_id"] == record["person_id"]
  assert not drawn and "tensorflow" not in sys.modules

  files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.array_record*")}
  assert files
  make_builder(str(tmp_path), **change).download_and_prepare()
  assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.array_record*")}
  assert make_builder(str(tmp_path), **change, seed=1).data_dir != builder.data_dir


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
  from dgia_jax.data.synth_pedes import builder as module

  def broken(settings, split, workers, people):
    yield from list(generate(settings, split, workers, people))[:3]
    raise KeyboardInterrupt

  small = dict(train_people=3, val_people=0, test_people=1)
  with monkeypatch.context() as patch:
    patch.setattr(module, "generate", broken)
    with pytest.raises(KeyboardInterrupt):
      module.make_builder(str(tmp_path), **small).download_and_prepare()
  assert not list(tmp_path.rglob("*.array_record*")) and not list(tmp_path.rglob("*info.json"))
  module.make_builder(str(tmp_path), **small).download_and_prepare()
  assert len(module.make_builder(str(tmp_path), **small).as_data_source("train")) == 18


def test_builder_names_and_mistakes(tmp_path):
  from dgia_jax.data.synth_pedes.builder import make_builder

  assert make_builder(str(tmp_path)).builder_config.name == "default"
  assert make_builder(str(tmp_path), preset="small").builder_config.name == "small"
  small = dict(train_people=400, val_people=40, test_people=40)
  assert make_builder(str(tmp_path), **small).builder_config.name == "small"
  with pytest.raises(UserError, match="tiny"):
    make_builder(str(tmp_path), preset="tiny")
  with pytest.raises(UserError, match="vagueness"):
    make_builder(str(tmp_path), vagueness=0.1)


def test_needs_numpy_and_pillow_only():
  """The records can be drawn where TFDS, JAX and TensorFlow cannot be imported."""
  program = """
import sys
for name in ("tensorflow_datasets", "tensorflow", "jax", "grain", "absl", "ml_collections"):
  sys.modules[name] = None
from dgia_jax.data.synth_pedes import Settings, generate
settings = Settings(train_people=1, val_people=1, test_people=30)
print(len(list(generate(settings, "test", workers=1))))
"""
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
  )
  assert done.stdout.strip() == "180", done.stderr


def test_defaults_and_the_version_of_built_data_change_together():
  """Otherwise data built with older defaults would be mistaken for the new data."""
  defaults = Settings(
    train_people=2700, val_people=200, test_people=200, images_per_person=6, captions_per_image=1,
    height=64, width=32, seed=0, attributes_per_caption=(4, 7), vague=0.1, wrong=0.05, annotators=0,
    camera=0.25, occlusion=0.1, variety=1.4,
  )  # fmt: skip
  assert (str(SynthPedes.VERSION), Settings()) == ("1.3.0", defaults)
