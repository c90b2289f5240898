"""Model files come from the hub's cache if they are complete there, else from the hub."""

import types

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from dgia_jax import hub
from dgia_jax.errors import UserError

SAFETENSORS, TORCH = ("config.json", "*.safetensors"), ("config.json", "pytorch_model.bin")


class FakeHub:
  """Replaces the hub's functions; `online` lists the files of its one model, None: no network."""

  def __init__(self, monkeypatch, folder, cached=(), online=None):
    self.folder, self.online, self.downloaded = folder, online, []
    for name in cached:
      (folder / name).touch()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", self.model_info)

  def model_info(self, name, timeout):
    assert name == "owner/model" and timeout <= 10
    if self.online is None:
      raise ConnectionError("no network\nmore about it")
    siblings = [types.SimpleNamespace(rfilename=file) for file in self.online]
    return types.SimpleNamespace(siblings=siblings)

  def snapshot_download(self, name, allow_patterns=None, local_files_only=False):
    if local_files_only:
      if not any(self.folder.iterdir()):
        raise LocalEntryNotFoundError("not in the cache")
      return str(self.folder)
    self.downloaded += allow_patterns
    return str(self.folder)


def fetch(*file_sets):
  return hub.fetch("owner/model", *file_sets, setting="pretrained", hint="give a folder")


def test_complete_files_in_the_cache_need_no_network(monkeypatch, tmp_path):
  fake = FakeHub(monkeypatch, tmp_path, cached=["config.json", "pytorch_model.bin"])
  assert fetch(SAFETENSORS, TORCH) == tmp_path
  assert fake.downloaded == []


@pytest.mark.parametrize("cached", [[], ["config.json"]])
def test_the_first_set_that_the_hub_has_is_downloaded(monkeypatch, tmp_path, cached):
  files = ["config.json", "model.safetensors", "pytorch_model.bin"]
  fake = FakeHub(monkeypatch, tmp_path, cached, online=files)
  assert fetch(SAFETENSORS, TORCH) == tmp_path
  assert fake.downloaded == [*SAFETENSORS]
  fake.online, fake.downloaded = ["config.json", "pytorch_model.bin"], []
  fetch(SAFETENSORS, TORCH)
  assert fake.downloaded == [*TORCH]


def test_an_unreachable_hub_is_a_user_error(monkeypatch, tmp_path):
  FakeHub(monkeypatch, tmp_path)
  expected = r"pretrained='owner/model' is no file or folder here .*\(no network\); give a folder$"
  with pytest.raises(UserError, match=expected):
    fetch(SAFETENSORS)


def test_a_model_without_the_files_is_a_user_error(monkeypatch, tmp_path):
  FakeHub(monkeypatch, tmp_path, online=["flax_model.msgpack"])
  with pytest.raises(UserError, match=r"neither config.json and \*.safetensors nor config.json"):
    fetch(SAFETENSORS, TORCH)


def test_a_path_is_not_a_model_name(monkeypatch):
  with pytest.raises(UserError, match="pretrained='/no/such/folder' is no file or folder here"):
    hub.fetch("/no/such/folder", TORCH, setting="pretrained", hint="")
