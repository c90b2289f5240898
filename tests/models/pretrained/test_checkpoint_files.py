"""Finding the files of a checkpoint and reading their tensors."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from dgia_jax import hub
from dgia_jax.errors import UserError
from dgia_jax.models.pretrained import checkpoint_files


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "clip"}')
  return tmp_path


def save(path, **tensors):
  safetensors.numpy.save_file(tensors, path)


def test_a_folder(folder):
  save(folder / "model.safetensors", weight=np.arange(3, dtype=np.float16))
  files = checkpoint_files.read(str(folder))
  assert files.folder == folder
  assert files.tensors["weight"].dtype == np.float16
  np.testing.assert_array_equal(files.tensors["weight"], [0, 1, 2])


def test_bfloat16_tensors_need_no_torch(folder):
  save(folder / "model.safetensors", weight=np.arange(3).astype(ml_dtypes.bfloat16))
  weight = checkpoint_files.read(str(folder)).tensors["weight"]
  np.testing.assert_array_equal(np.asarray(weight, np.float32), [0, 1, 2])


def test_weights_in_several_files(folder):
  save(folder / "part-1.safetensors", a=np.zeros(2))
  save(folder / "part-2.safetensors", b=np.ones(3))
  places = {"a": "part-1.safetensors", "b": "part-2.safetensors"}
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
  assert checkpoint_files.read(str(folder)).tensors.keys() == {"a", "b"}


def test_a_folder_with_torch_weights(folder):
  torch = pytest.importorskip("torch")
  torch.save({"a": torch.ones(2)}, folder / "pytorch_model.bin")
  np.testing.assert_array_equal(checkpoint_files.read(str(folder)).tensors["a"], [1, 1])


def test_missing_and_damaged_weights_are_named(folder):
  names = (
    "model.safetensors nor model.safetensors.index.json nor open_clip_model.safetensors nor"
    " pytorch_model.bin nor open_clip_pytorch_model.bin"
  )
  with pytest.raises(UserError, match=f"holds neither {names}$"):
    checkpoint_files.read(str(folder))
  (folder / "model.safetensors").write_bytes(b"12345678 no such thing")
  with pytest.raises(UserError, match="model.safetensors is damaged"):
    checkpoint_files.read(str(folder))


def test_an_index_lists_only_files_of_its_folder(folder):
  for entry in ("../part.safetensors", "/etc/passwd", "a\\b", "", 3):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": entry}}))
    with pytest.raises(UserError, match=r"index\.json (lists .* no file of its folder|has no)"):
      checkpoint_files.read(str(folder))


def test_a_hub_name_is_read_from_the_folder_that_was_fetched(folder, monkeypatch):
  save(folder / "model.safetensors", weight=np.zeros(1))
  monkeypatch.setattr(hub, "fetch", lambda name, *_, **__: {"owner/model": folder}[name])
  assert checkpoint_files.read("owner/model").tensors.keys() == {"weight"}


def test_what_says_how_images_are_prepared_is_asked_of_the_hub(folder, monkeypatch):
  save(folder / "model.safetensors", weight=np.zeros(1))
  asked = {}

  def fetch(name, *file_sets, **options):
    asked.update(options)
    return folder

  monkeypatch.setattr(hub, "fetch", fetch)
  checkpoint_files.read("owner/model")
  assert asked["also"] == ("preprocessor_config.json", "open_clip_config.json")
