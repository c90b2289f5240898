"""SigLIP's tokenizers keep their own ids, and encode as transformers does with padding."""

import json
import pathlib

import numpy as np
import pytest
import tokenizers

from dgia_jax import files
from dgia_jax.data import siglip_tokenizer
from dgia_jax.data import tokenizer as tokenizer_lib
from dgia_jax.errors import UserError
from tests.helpers import siglip_files
from tests.helpers.odd_captions import odd_captions

LENGTH = 12
CAPTIONS = [
  *siglip_files.CAPTIONS,
  "A MAN, with a bag!",
  "",
  " ".join(siglip_files.CAPTIONS),
  "zebra",
]


def read(folder):
  return tokenizer_lib.pretrained_tokenizer(str(folder), LENGTH, is_siglip=True)


def theirs(transformers, folder, captions):
  reader = transformers.AutoTokenizer.from_pretrained(folder)
  options = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
  return reader(captions, **options)["input_ids"]


def test_siglip(tmp_path):
  transformers = pytest.importorskip("transformers")
  folder = siglip_files.write_siglip(tmp_path)
  tokenizer = read(folder)
  assert (tokenizer.pad_id, tokenizer.end_id, tokenizer.mask_id) == (1, 1, 2)
  assert tokenizer.word_ids == range(3, 36) and tokenizer.first_word == 0
  ids = tokenizer.encode(CAPTIONS)
  assert ids.dtype == np.int32 and ids.shape == (len(CAPTIONS), LENGTH)
  np.testing.assert_array_equal(ids, theirs(transformers, folder, CAPTIONS))
  # Punctuation and capitals are removed; the end comes also when a caption is too long.
  np.testing.assert_array_equal(ids[4], tokenizer.encode(["a man with a bag"])[0])
  assert (ids[5] == 1).all() and ids[6, -1] == 1 and ids[6, -2] != 1


def test_siglip_2(tmp_path):
  transformers = pytest.importorskip("transformers")
  folder = siglip_files.write_siglip_2(tmp_path)
  tokenizer = read(folder)
  assert (tokenizer.pad_id, tokenizer.end_id, tokenizer.mask_id) == (0, 1, 4)
  assert tokenizer.word_ids == range(5, tokenizer.vocab_size) and tokenizer.first_word == 0
  ids = tokenizer.encode(CAPTIONS)
  lower = [caption.lower() for caption in CAPTIONS]
  np.testing.assert_array_equal(ids, theirs(transformers, folder, lower))
  assert ids[5].tolist() == [1] + [0] * (LENGTH - 1)
  # Punctuation stays.
  assert not np.array_equal(ids[4], tokenizer.encode(["a man with a bag"])[0])


@pytest.mark.parametrize("write", [siglip_files.write_siglip, siglip_files.write_siglip_2])
def test_special_tokens_in_a_caption_are_text(tmp_path, write):
  tokenizer = read(write(tmp_path))
  plain = tokenizer.encode(["a man"])[0]
  num_words = int(np.flatnonzero(plain == tokenizer.end_id)[0])
  for special in ("</s>", "<eos>", "<pad>", "<mask>"):
    ids = tokenizer.encode([f"a man {special} red"])[0]
    first_end = int(np.flatnonzero(ids == tokenizer.end_id)[0])
    assert first_end > num_words + 1, special


@pytest.mark.parametrize("write", [siglip_files.write_siglip, siglip_files.write_siglip_2])
def test_an_exported_tokenizer_is_read_back(tmp_path, write):
  transformers = pytest.importorskip("transformers")
  tokenizer = read(write(tmp_path / "published"))
  tokenizer.export(tmp_path / "saved")
  saved = tokenizer_lib.folder_tokenizer(tmp_path / "saved", LENGTH, is_siglip=True)
  np.testing.assert_array_equal(saved.encode(CAPTIONS), tokenizer.encode(CAPTIONS))
  for name in ("vocab_size", "pad_id", "end_id", "mask_id", "word_ids", "context_length"):
    assert getattr(saved, name) == getattr(tokenizer, name), name
  reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
  inputs = reader(CAPTIONS, padding="max_length", truncation=True)
  np.testing.assert_array_equal(inputs["input_ids"], tokenizer.encode(CAPTIONS))
  assert list(inputs) == ["input_ids"]
  assert {path.name for path in (tmp_path / "saved").iterdir()} <= set(siglip_tokenizer.FILES)
  config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
  assert not {"is_local", "local_files_only", "name_or_path"} & config.keys()


def test_an_exported_siglip_2_cleans_captions_as_training_does(tmp_path):
  transformers = pytest.importorskip("transformers")
  folder = siglip_files.write_siglip_2(tmp_path / "published")
  backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  # As in Gemma's vocabulary, line breaks are tokens, which are looked for in raw text.
  backend.add_tokens([tokenizers.AddedToken("coat", normalized=False)])
  content = json.loads(backend.to_str())
  number = max(content["model"]["vocab"].values()) + 1
  content["model"]["vocab"]["\n"] = number
  content["added_tokens"].append(content["added_tokens"][-1] | {"id": number, "content": "\n"})
  (folder / "tokenizer.json").write_text(json.dumps(content))
  tokenizer = read(folder)
  tokenizer.export(tmp_path / "saved")
  reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
  captions = odd_captions(seed=2, count=1000)
  ids = np.array(reader(captions, padding="max_length", truncation=True)["input_ids"])
  different = (ids != tokenizer.encode(captions)).any(axis=1)
  assert different.sum() <= 2, [c for c, d in zip(captions, different, strict=True) if d]


def test_the_mask_is_found_by_its_name(tmp_path):
  """Not every version of transformers knows that it is the mask."""
  folder = siglip_files.write_siglip_2(tmp_path)
  path = folder / "tokenizer_config.json"
  config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
  del config["mask_token"]
  path.write_text(json.dumps(config))
  tokenizer = read(folder)
  assert tokenizer._reader.mask_token is None and tokenizer.mask_id == 4


def test_a_full_disk_is_an_os_error(tmp_path):
  tokenizer = read(siglip_files.write_siglip_2(tmp_path / "published"))

  class Reader:
    def save_pretrained(self, folder):
      assert pathlib.Path(folder).parent == tmp_path / "out"  # its disk, not that of /tmp
      raise Exception("No space left on device (os error 28)")  # as `tokenizers` does

  tokenizer._reader = Reader()
  with pytest.raises(OSError, match="No space left"):
    tokenizer.export(tmp_path / "out")
  assert not list((tmp_path / "out").iterdir())


def test_mistakes_end_in_one_line(tmp_path):
  with pytest.raises(UserError, match="context_length=1 leaves no room"):
    siglip_tokenizer.read(tmp_path, 1)
  with pytest.raises(UserError, match="holds no tokenizer of a SigLIP model") as error:
    siglip_tokenizer.read(tmp_path, LENGTH)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.json"])
def test_a_vocabulary_that_differs_from_its_checksum_is_refused(tmp_path, name):
  folder = siglip_files.write_siglip_2(tmp_path)
  if name == "spiece.model":
    (folder / name).write_bytes(b"a vocabulary")
  files.write_checksums(folder, [name])
  (folder / name).write_bytes((folder / name).read_bytes() + b" ")
  with pytest.raises(UserError, match=f"{name} is damaged .its checksum differs"):
    read(folder)


def test_a_tokenizer_whose_special_ids_are_the_last_is_refused(tmp_path):
  folder = siglip_files.write_siglip_2(tmp_path)
  path = folder / "tokenizer_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "shoes"}))
  with pytest.raises(UserError, match="padding, end and unknown token are not among the first ids"):
    read(folder)
