"""The pairs and the tokenizer of a run."""

import types

import huggingface_hub
import jax
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from dgia_jax.data import datasets, pairs
from dgia_jax.data import tokenizer as tokenizer_lib
from dgia_jax.errors import UserError
from dgia_jax.training import inputs
from dgia_jax.training import workdir as workdir_lib
from tests.helpers import tiny_run, vocabularies
from tests.helpers.known_run import CAPTIONS


def test_a_learned_vocabulary_is_stored_with_the_run(tmp_path):
  config, captions = tiny_run.config(), tiny_run.splits()["train"].captions
  learned = inputs.load_tokenizer(config, tmp_path, captions)
  assert (tmp_path / workdir_lib.TOKENIZER).is_dir()
  assert learned.context_length == 8 and learned.vocab_size <= 300
  workdir_lib.claim(tmp_path, config)
  # A vocabulary learned from these other captions would give other ids.
  loaded = inputs.load_tokenizer(config, tmp_path, ["qqqq zzzz"] * 5)
  np.testing.assert_array_equal(loaded.encode(captions), learned.encode(captions))
  assert loaded.vocab_size == learned.vocab_size


def test_the_vocabulary_of_a_shipped_model_is_copied(shipped_mini, tmp_path):
  run, stored = tmp_path / "run", tokenizer_lib.load_tokenizer(shipped_mini)
  config = tiny_run.config(pretrained="mini", tokenizer__context_length=16)
  vocabulary = inputs.load_tokenizer(config, run, ["qqqq zzzz"] * 5)
  copied = tokenizer_lib.load_tokenizer(run / workdir_lib.TOKENIZER)
  captions = [*CAPTIONS, "qqqq zzzz", "an unknown word: Übermut"]
  for tokenizer in (vocabulary, copied):
    assert tokenizer.vocab_size == stored.vocab_size
    np.testing.assert_array_equal(tokenizer.encode(captions), stored.encode(captions))
  # The bytes of an unknown word are tokens, so no caption is lost.
  assert len({tuple(row) for row in copied.encode(captions)}) == len(captions)


def test_new_words_are_added_to_the_copied_vocabulary(shipped_mini, tmp_path):
  stored, captions = tokenizer_lib.load_tokenizer(shipped_mini), ["crimson crimson hat"] * 5
  config = tiny_run.config(pretrained="mini", tokenizer__context_length=16, tokenizer__new_words=10)
  larger = inputs.load_tokenizer(config, tmp_path, captions)
  assert larger.vocab_size == stored.vocab_size + 1  # "hat" occurs five times
  assert inputs.pieces_of_new_words(config, larger) == [stored.pieces("crimson")]
  workdir_lib.claim(tmp_path, config)
  # Other captions change nothing in a run that has begun.
  loaded = inputs.load_tokenizer(config, tmp_path, ["azure"] * 20)
  np.testing.assert_array_equal(loaded.encode(captions), larger.encode(captions))
  assert inputs.pieces_of_new_words(config, loaded) == [stored.pieces("crimson")]


@pytest.mark.parametrize("fields", [{}, {"tokenizer__new_words": 1}])
def test_a_vocabulary_of_the_runs_own_has_no_new_words(fields, tmp_path):
  """It is learned from the same captions."""
  config, captions = tiny_run.config(**fields), tiny_run.splits()["train"].captions
  assert inputs.pieces_of_new_words(config, inputs.load_tokenizer(config, tmp_path, captions)) == []


def test_a_published_tokenizer_stays_as_it_is(tmp_path):
  folder = vocabularies.write("clip", tmp_path / "clip")
  fields = {"tokenizer__name": str(folder), "tokenizer__context_length": 77}
  plain, same = (
    inputs.load_tokenizer(tiny_run.config(**fields, **more), tmp_path / "run", ["azure"] * 9)
    for more in ({}, {"tokenizer__new_words": 1})
  )
  assert same.vocab_size == plain.vocab_size
  config = tiny_run.config(**fields, tokenizer__new_words=1)
  assert inputs.pieces_of_new_words(config, same) == []


class FakeHub:
  """Replaces the hub by one that has a model, the files of a folder."""

  def __init__(self, monkeypatch, folder):
    self.folder, self.downloaded = folder, []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", self.model_info)

  def model_info(self, name, timeout):
    siblings = [types.SimpleNamespace(rfilename=path.name) for path in self.folder.iterdir()]
    return types.SimpleNamespace(siblings=siblings)

  def snapshot_download(self, name, allow_patterns=None, local_files_only=False):
    if local_files_only:
      raise LocalEntryNotFoundError("not in the cache")
    self.downloaded += [(name, *allow_patterns)]
    return str(self.folder)


def test_the_vocabulary_of_a_model_on_the_hub_is_copied(shipped_mini, tmp_path, monkeypatch):
  """As `convert --push_to_hub` uploads it."""
  fake, stored = FakeHub(monkeypatch, shipped_mini), tokenizer_lib.load_tokenizer(shipped_mini)
  config = tiny_run.config(pretrained="owner/model", tokenizer__context_length=16)
  inputs.load_tokenizer(config, tmp_path / "run", ["qqqq zzzz"] * 5)
  needed = ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json")
  assert fake.downloaded == [("owner/model", *needed)]
  copied = tokenizer_lib.load_tokenizer(tmp_path / "run" / workdir_lib.TOKENIZER)
  np.testing.assert_array_equal(copied.encode(CAPTIONS), stored.encode(CAPTIONS))


def test_a_model_on_the_hub_without_a_vocabulary_is_refused(shipped_mini, tmp_path, monkeypatch):
  """Another vocabulary would give the ids of the model other meanings."""
  for name in ("config.json", "model.safetensors"):
    (tmp_path / name).symlink_to(shipped_mini / name)
  FakeHub(monkeypatch, tmp_path)
  config = tiny_run.config(pretrained="owner/model", tokenizer__context_length=16)
  with pytest.raises(UserError, match="config.pretrained='owner/model'.*tokenizer.json.*give"):
    inputs.load_tokenizer(config, tmp_path / "run", ["red coat"])
  assert not (tmp_path / "run").exists()


def test_another_context_length_than_the_pretrained_one_is_refused(shipped_mini, tmp_path):
  config = tiny_run.config(pretrained="mini", tokenizer__context_length=8)
  with pytest.raises(UserError, match="context_length=8: config.pretrained=mini has 16; give the"):
    inputs.load_tokenizer(config, tmp_path / "run", [])


def test_a_folder_with_a_published_tokenizer_or_none_provides_no_vocabulary(tmp_path):
  vocabularies.write("clip", tmp_path / "clip")
  (tmp_path / "none").mkdir()
  captions = tiny_run.splits()["train"].captions
  learned = inputs.load_tokenizer(tiny_run.config(), tmp_path / "run", captions)
  for name in ("clip", "none"):
    config = tiny_run.config(pretrained=str(tmp_path / name))
    vocabulary = inputs.load_tokenizer(config, tmp_path / f"{name}_run", captions)
    np.testing.assert_array_equal(vocabulary.encode(captions), learned.encode(captions))


def test_the_vocabulary_of_a_failed_start_is_replaced(tmp_path):
  """Until the working directory is claimed, a vocabulary in it belongs to no run."""
  config, captions = tiny_run.config(), tiny_run.splits()["train"].captions
  inputs.load_tokenizer(config, tmp_path, ["qqqq zzzz"] * 5)
  replaced = inputs.load_tokenizer(config, tmp_path, captions)
  learned = inputs.load_tokenizer(config, tmp_path / "other", captions)
  np.testing.assert_array_equal(replaced.encode(captions), learned.encode(captions))


def test_a_missing_vocabulary_of_a_run_is_named(tmp_path):
  """Learning another one would change the meaning of the run's tokens."""
  workdir_lib.claim(tmp_path, tiny_run.config())
  with pytest.raises(UserError, match=f"{workdir_lib.TOKENIZER}.*missing"):
    inputs.load_tokenizer(tiny_run.config(), tmp_path, ["red coat"])


def test_only_the_first_process_writes_the_tokenizer(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  captions = tiny_run.splits()["train"].captions
  assert inputs.load_tokenizer(tiny_run.config(), tmp_path, captions).vocab_size
  assert not (tmp_path / workdir_lib.TOKENIZER).exists()


def test_a_named_tokenizer_is_loaded_and_not_trained(tmp_path, monkeypatch):
  named = tokenizer_lib.train_tokenizer(["red coat", "blue coat"], 8, 300)
  load = lambda *arguments: {("some/clip", 8, False): named}[arguments]
  monkeypatch.setattr(tokenizer_lib, "pretrained_tokenizer", load)
  config = tiny_run.config(tokenizer__name="some/clip")
  assert inputs.load_tokenizer(config, tmp_path, []) is named
  assert not (tmp_path / workdir_lib.TOKENIZER).exists()


@pytest.fixture
def built_dataset(monkeypatch):
  """Replaces the dataset registry; returns the arguments of `load_builder` and the splits."""
  arguments, splits = {}, tiny_run.splits()

  def load_builder(name, **settings):
    arguments.update(name=name, **settings)
    return types.SimpleNamespace(info=types.SimpleNamespace(splits=splits))

  monkeypatch.setattr(datasets, "load_builder", load_builder)
  read = lambda builder, split, size, resize: {((16, 16), "bilinear"): builder.info.splits}[
    size, resize
  ][split]
  monkeypatch.setattr(pairs, "load_pairs", read)
  return arguments, splits


def test_load_splits_loads_the_configured_dataset(built_dataset):
  arguments, splits = built_dataset
  config = tiny_run.config(dataset__source="folder", dataset__data_dir="built")
  loaded = inputs.load_splits(config)
  assert list(loaded) == ["train", "val", "test"]
  assert all(loaded[name] is splits[name] for name in loaded)
  # Empty settings are not passed on, because not every dataset accepts them.
  assert arguments == dict(
    name="synth_pedes", image_size=(16, 16), data_dir="built", source="folder",
    train_people=400, val_people=40, test_people=40,
  )  # fmt: skip


def test_missing_val_split(built_dataset):
  _, splits = built_dataset
  del splits["val"]
  with pytest.raises(UserError, match=r"no val split \(found: train, test\); set config.eval.sele"):
    inputs.load_splits(tiny_run.config(eval__select_on="val"))
  assert list(inputs.load_splits(tiny_run.config(eval__select_on="test"))) == ["train", "test"]


@pytest.mark.parametrize("missing", ["train", "test"])
def test_missing_train_or_test_split(built_dataset, missing):
  _, splits = built_dataset
  del splits[missing]
  with pytest.raises(UserError, match=f"synth_pedes has no {missing} split.*check its annotations"):
    inputs.load_splits(tiny_run.config())
