"""Vocabularies with gaps between their ids, and damaged ones."""

import json
import resource

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from dgia_jax.data import new_words
from dgia_jax.data import tokenizer as tokenizer_lib
from dgia_jax.errors import UserError
from tests.helpers import vocabularies
from tests.helpers.vocabularies import IDS, LINES

_CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}
CAPTIONS = ["a red coat", "coat", "", "a red coat " * 5]


def write(folder, ids):
  """Writes a vocabulary of whole words as transformers reads it."""
  backend = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
  backend.pre_tokenizer = pre_tokenizers.Whitespace()
  folder.mkdir()
  backend.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(json.dumps(_CLASS))
  return folder


@pytest.fixture
def gapped(tmp_path):
  """A vocabulary of five tokens, whose highest id is 9."""
  pytest.importorskip("transformers")
  return write(tmp_path / "gapped", {"[PAD]": 0, "[UNK]": 1, "a": 2, "red": 5, "coat": 9})


def test_special_ids_are_above_a_gap(gapped, tmp_path):
  tokenizer = tokenizer_lib.pretrained_tokenizer(str(gapped), 6)
  special = (tokenizer.mask_id, tokenizer.start_id, tokenizer.end_id, tokenizer.vocab_size)
  assert special == (10, 11, 12, 13)
  ids = tokenizer.encode(CAPTIONS)
  assert ids[0].tolist() == [11, 2, 5, 9, 12, 0] and (ids.max(axis=1) == 12).all()
  tokenizer.save(tmp_path / "saved")
  saved = tokenizer_lib.load_tokenizer(tmp_path / "saved")
  np.testing.assert_array_equal(saved.encode(CAPTIONS), ids)
  assert (saved.mask_id, saved.vocab_size) == (10, 13)


def test_a_saved_vocabulary_keeps_the_ids_that_it_was_saved_with(gapped, tmp_path, caplog):
  """Earlier releases put the special ids behind the number of tokens, others ids above them."""
  tokenizer_lib.pretrained_tokenizer(str(gapped), 6).save(tmp_path)
  tokenizer_lib.load_tokenizer(tmp_path)
  assert not caplog.text
  (tmp_path / "SHA256SUMS").unlink()
  path = tmp_path / "tokenizer.json"
  content = json.loads(path.read_text())
  for token, number in (("<start>", 6), ("<end>", 7)):
    content["post_processor"]["special_tokens"][token]["ids"] = [number]
  path.write_text(json.dumps(content))
  tokenizer = tokenizer_lib.load_tokenizer(tmp_path)
  assert (tokenizer.mask_id, tokenizer.end_id, tokenizer.vocab_size) == (5, 7, 8)
  assert tokenizer.encode(["a coat"]).tolist() == [[6, 2, 9, 7, 0, 0]]
  assert "tokens with ids from that of the mask, 5, on" in caplog.text


def test_new_words_need_a_vocabulary_without_gaps(gapped):
  tokenizer = tokenizer_lib.pretrained_tokenizer(str(gapped), 6)
  with pytest.raises(UserError, match="^config.tokenizer.new_words=1: the ids .* have gaps"):
    new_words.add_new_words(tokenizer, ["a crimson coat"], 1)


def test_padding_needs_its_id(tmp_path):
  pytest.importorskip("transformers")
  folder = write(tmp_path / "shifted", {"[UNK]": 1, "red": 2})
  with pytest.raises(UserError, match="^tokenizer.name: no token .* has the id 0"):
    tokenizer_lib.pretrained_tokenizer(str(folder), 6)


def _without(*names):
  return {token: number for token, number in IDS.items() if token not in names}


@pytest.mark.parametrize(
  "vocab",
  [
    {token: str(number) for token, number in IDS.items()},
    {token: float(number) for token, number in IDS.items()},
    IDS | {"a": None},
    IDS | {"a": [1]},
    {"<|startoftext|>": 0, "<|endoftext|>": 1},
    {"<|startoftext|>": 0},
    {"<|startoftext|>": False, "<|endoftext|>": True},
    _without("!"),
    list(IDS),
    "abc",
    None,
  ],
  ids=lambda vocab: str(vocab)[:30],
)
@pytest.mark.parametrize("form", ["vocab.json", "tokenizer.json"])
def test_damaged_ids_end_in_one_line(tmp_path, vocab, form):
  if form == "vocab.json":
    vocabularies.write("clip", tmp_path / "clip")
    (tmp_path / "clip" / "vocab.json").write_text(json.dumps(vocab))
    read = tokenizer_lib.clip_tokenizer
  else:
    (tmp_path / "clip").mkdir()
    content = {"model": {"type": "BPE", "vocab": vocab, "merges": LINES}}
    (tmp_path / "clip" / "tokenizer.json").write_text(json.dumps(content))
    read = tokenizer_lib.pretrained_tokenizer
  with pytest.raises(UserError, match="^tokenizer.name: ") as error:
    read(str(tmp_path / "clip"))
  assert "\n" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("merges", [None, 3, "ab", [1], [[1, 2]], [["a"]], [None], [["a", None]]])
def test_damaged_merges_end_in_one_line(tmp_path, merges):
  content = {"model": {"vocab": IDS, "merges": merges}}
  (tmp_path / "tokenizer.json").write_text(json.dumps(content))
  with pytest.raises(UserError, match="^tokenizer.name: ") as error:
    tokenizer_lib.pretrained_tokenizer(str(tmp_path))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "content",
  [
    {"post_processor": "<start>"},
    {"post_processor": ["<start>"]},
    {"post_processor": {"special_tokens": None}},
    {"post_processor": {"special_tokens": 3}},
    {"post_processor": {"special_tokens": "<start>"}},
    {"model": "BPE"},
    {"model": {"vocab": "<|startoftext|>"}},
    [],
  ],
)
def test_a_damaged_tokenizer_in_a_models_folder_ends_in_one_line(tmp_path, content):
  (tmp_path / "tokenizer.json").write_text(json.dumps(content))
  assert not tokenizer_lib.is_saved(tmp_path)
  with pytest.raises(UserError) as error:
    tokenizer_lib.folder_tokenizer(tmp_path, 16)
  assert "\n" not in str(error.value)


def test_a_tokenizer_that_does_not_mark_start_and_end_is_refused(tmp_path):
  tokenizer_lib.train_tokenizer(CAPTIONS, 8, 300).save(tmp_path)
  (tmp_path / "SHA256SUMS").unlink()
  path = tmp_path / "tokenizer.json"
  content = json.loads(path.read_text())
  content["post_processor"]["single"] = [{"Sequence": {"id": "A", "type_id": 0}}]
  path.write_text(json.dumps(content))
  with pytest.raises(UserError, match="was not saved by dgia_jax: it does not put a start"):
    tokenizer_lib.load_tokenizer(tmp_path)


def test_a_full_disk_leaves_an_exported_tokenizer_as_it_was(tmp_path):
  tokenizer = tokenizer_lib.train_tokenizer(CAPTIONS, 8, 300)
  tokenizer.export(tmp_path)
  before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # bytes of a file
  try:
    with pytest.raises(OSError):
      tokenizer_lib.train_tokenizer(CAPTIONS, 9, 300).export(tmp_path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
