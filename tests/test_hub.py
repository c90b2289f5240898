"""Model files come from the hub's cache if they are complete there; a folder is uploaded whole."""

import json
import types

import huggingface_hub
import pytest
from huggingface_hub.errors import (
  HfHubHTTPError,
  LocalEntryNotFoundError,
  LocalTokenNotFoundError,
)

from dgia_jax import hub
from dgia_jax.errors import UserError

try:
  import httpx2 as httpx  # which huggingface_hub 2 is built on
except ImportError:
  import httpx

SAFETENSORS, TORCH = ("config.json", "*.safetensors"), ("config.json", "pytorch_model.bin")
SHARDS = ("config.json", "model.safetensors.index.json", "*.safetensors")
PREPROCESSING = ("preprocessor_config.json", "open_clip_config.json")


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


def fetch(*file_sets, also=()):
  return hub.fetch("owner/model", *file_sets, also=also, setting="pretrained", hint="give a folder")


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


def test_a_cached_model_is_completed_with_what_says_how_images_are_prepared(monkeypatch, tmp_path):
  online = [*TORCH, "model.safetensors", "preprocessor_config.json"]
  fake = FakeHub(monkeypatch, tmp_path, cached=TORCH, online=online)
  assert fetch(SAFETENSORS, TORCH, also=PREPROCESSING) == tmp_path
  assert fake.downloaded == [*TORCH, "preprocessor_config.json"]  # not the weights in another form
  (tmp_path / "open_clip_config.json").touch()  # which says the same
  fake.downloaded, fake.online = [], None
  assert fetch(SAFETENSORS, TORCH, also=PREPROCESSING) == tmp_path and fake.downloaded == []


@pytest.mark.parametrize("online", [None, TORCH])
def test_a_cached_model_is_used_as_it_is_if_the_hub_has_no_more(
  monkeypatch, tmp_path, caplog, online
):
  fake = FakeHub(monkeypatch, tmp_path, cached=TORCH, online=online)
  assert fetch(TORCH, also=PREPROCESSING) == tmp_path and fake.downloaded == []
  assert ("has no preprocessor_config.json or open_clip_config.json" in caplog.text) == (not online)


def test_a_first_download_holds_what_says_how_images_are_prepared(monkeypatch, tmp_path):
  fake = FakeHub(monkeypatch, tmp_path, online=[*TORCH, *PREPROCESSING])
  fetch(SAFETENSORS, TORCH, also=PREPROCESSING)
  assert fake.downloaded == [*TORCH, *PREPROCESSING]


def test_half_of_the_weights_in_the_cache_are_not_all(monkeypatch, tmp_path):
  parts = ["model-1.safetensors", "model-2.safetensors"]
  cached = ["config.json", parts[0]]
  fake = FakeHub(monkeypatch, tmp_path, cached, online=[*SHARDS[:2], *parts])
  index = {"weight_map": {"a": parts[0], "b": parts[1]}}
  (tmp_path / SHARDS[1]).write_text(json.dumps(index))
  fetch(SHARDS)
  assert fake.downloaded == [*SHARDS]
  (tmp_path / parts[1]).touch()
  fake.downloaded, fake.online = [], None
  assert fetch(SHARDS) == tmp_path and fake.downloaded == []


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 1}'])
def test_a_damaged_index_is_left_to_its_reader(monkeypatch, tmp_path, content):
  FakeHub(monkeypatch, tmp_path, cached=["config.json", "model-1.safetensors"])
  (tmp_path / SHARDS[1]).write_text(content)
  assert fetch(SHARDS) == tmp_path


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


class FakeUploads:
  """Replaces the hub's functions for uploading; `error` is raised by the function it names."""

  def __init__(self, monkeypatch, *, exists_publicly=False, error=()):
    self.private, self.uploaded = False, None
    self.exists, self.error = exists_publicly, dict([error]) if error else {}
    for name in ("create_repo", "model_info", "upload_folder"):
      monkeypatch.setattr(huggingface_hub.HfApi, name, getattr(self, name))

  def create_repo(self, name, private, exist_ok):
    assert name == "owner/model" and exist_ok
    self._fail("create_repo")
    if not self.exists:
      self.private = bool(private)
    return f"https://huggingface.co/{name}"

  def model_info(self, name):
    return types.SimpleNamespace(private=self.private)

  def upload_folder(self, *, repo_id, folder_path, allow_patterns, delete_patterns, **_):
    self._fail("upload_folder")
    assert repo_id == "owner/model" and delete_patterns == allow_patterns
    self.uploaded = sorted(p.name for p in folder_path.iterdir() if p.name in allow_patterns)

  def _fail(self, function):
    if function in self.error:
      raise self.error[function]


def push(folder, name="owner/model", private=False):
  for file in ("model.safetensors", "README.md", "diary.txt"):
    (folder / file).write_text(file)
  names = ["model.safetensors", "README.md", "tokenizer.json"]
  return hub.push(folder, name, names, private=private, setting="--push_to_hub")


@pytest.mark.parametrize("private", [False, True])
def test_an_upload_holds_the_files_of_the_model_and_no_others(monkeypatch, tmp_path, private):
  fake = FakeUploads(monkeypatch)
  assert push(tmp_path, private=private) == "https://huggingface.co/owner/model"
  assert fake.uploaded == ["README.md", "model.safetensors"] and fake.private == private


def test_private_weights_are_not_uploaded_to_a_public_model(monkeypatch, tmp_path):
  fake = FakeUploads(monkeypatch, exists_publicly=True)
  with pytest.raises(UserError, match="exists and is public, so nothing was uploaded"):
    push(tmp_path, private=True)
  assert fake.uploaded is None
  push(tmp_path)
  assert fake.uploaded


def http_error(status):
  request = httpx.Request("POST", "https://huggingface.co/api/repos/create")
  return HfHubHTTPError("refused\nmore", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
  "function, error, hint",
  [
    ("create_repo", LocalTokenNotFoundError("no token"), "hf auth login.*may write to owner"),
    ("create_repo", http_error(401), "hf auth login"),
    ("upload_folder", http_error(403), "hf auth login"),
    ("upload_folder", http_error(500), "try again"),
    ("create_repo", httpx.ConnectError(""), r"\(ConnectError\); check the network"),
  ],
)
def test_a_failed_upload_is_one_line_and_the_folder_stays(
  monkeypatch, tmp_path, function, error, hint
):
  FakeUploads(monkeypatch, error=(function, error))
  with pytest.raises(UserError, match=f"--push_to_hub='owner/model' cannot.*{hint}.*stays") as info:
    push(tmp_path)
  assert "\n" not in str(info.value) and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", ["model", "a/b/c", "owner/", "owner/mo del", "owner/a--b", "~/x"])
def test_a_name_that_the_hub_refuses_is_a_user_error(tmp_path, name):
  with pytest.raises(UserError, match="--push_to_hub=.*give USER/NAME"):
    push(tmp_path, name)
