"""Finding a checkpoint's files and reading their tensors."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from dgia_jax.errors import UserError
from dgia_jax.models.pretrained import files as files_lib


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "clip"}')
  return tmp_path


def save(path, **tensors):
  safetensors.numpy.save_file(tensors, path)


def test_a_folder(folder):
  save(folder / "model.safetensors", weight=np.arange(3, dtype=np.float16))
  files = files_lib.read(str(folder))
  assert files.config == {"model_type": "clip"}
  assert files.tensors["weight"].dtype == np.float16
  np.testing.assert_array_equal(files.tensors["weight"], [0, 1, 2])


def test_bfloat16_tensors_need_no_torch(folder):
  save(folder / "model.safetensors", weight=np.arange(3).astype(ml_dtypes.bfloat16))
  weight = files_lib.read(str(folder)).tensors["weight"]
  np.testing.assert_array_equal(np.asarray(weight, np.float32), [0, 1, 2])


def test_weights_in_several_files(folder):
  save(folder / "part-1.safetensors", a=np.zeros(2))
  save(folder / "part-2.safetensors", b=np.ones(3))
  places = {"a": "part-1.safetensors", "b": "part-2.safetensors"}
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
  assert files_lib.read(str(folder)).tensors.keys() == {"a", "b"}


def test_a_folder_with_torch_weights(folder):
  torch = pytest.importorskip("torch")
  torch.save({"a": torch.ones(2)}, folder / "pytorch_model.bin")
  np.testing.assert_array_equal(files_lib.read(str(folder)).tensors["a"], [1, 1])


def test_what_is_missing_or_damaged_is_named(folder):
  with pytest.raises(UserError, match="neither model.safetensors nor pytorch_model.bin"):
    files_lib.read(str(folder))
  (folder / "model.safetensors").write_bytes(b"12345678 no such thing")
  with pytest.raises(UserError, match="model.safetensors cannot be read"):
    files_lib.read(str(folder))
  (folder / "config.json").write_text("{")
  with pytest.raises(UserError, match="config.json is no JSON"):
    files_lib.read(str(folder))
  (folder / "config.json").unlink()
  with pytest.raises(UserError, match="config.json is missing"):
    files_lib.read(str(folder))


class Hub:
  """Stands for the hub: `local` files are in the cache, `remote` ones can be fetched."""

  def __init__(self, monkeypatch, folder, local, remote):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    self.folder, self.remote, self.fetched = folder, remote, []
    self.missing = LocalEntryNotFoundError
    for name in local:
      self.write(name)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

  def write(self, name):
    if name.endswith(".safetensors"):
      save(self.folder / name, weight=np.zeros(1))
    else:
      (self.folder / name).write_text("{}")

  def download(self, name, allow_patterns, local_files_only):
    if local_files_only:
      if not any(self.folder.iterdir()):
        raise self.missing("not in the cache")
      return str(self.folder)
    if self.remote is None:
      raise ConnectionError("no network")
    for file in self.remote:
      if file in allow_patterns or "*" + file[file.rindex(".") :] in allow_patterns:
        self.fetched.append(file)
        self.write(file)
    return str(self.folder)


def test_a_hub_name_is_read_from_the_cache_without_network(monkeypatch, tmp_path):
  hub = Hub(monkeypatch, tmp_path, local=["config.json", "model.safetensors"], remote=None)
  assert files_lib.read("owner/model").tensors.keys() == {"weight"}
  assert hub.fetched == []


@pytest.mark.parametrize("local", [[], ["config.json"]])
def test_a_hub_model_is_fetched_without_its_torch_twin(monkeypatch, tmp_path, local):
  files = ["config.json", "model.safetensors", "pytorch_model.bin"]
  hub = Hub(monkeypatch, tmp_path, local=local, remote=files)
  assert files_lib.read("owner/model").tensors.keys() == {"weight"}
  assert "pytorch_model.bin" not in hub.fetched


def test_an_unreachable_hub_is_a_users_error(monkeypatch, tmp_path):
  Hub(monkeypatch, tmp_path, local=[], remote=None)
  with pytest.raises(UserError, match="owner/model.*no file or folder.*no network"):
    files_lib.read("owner/model")
