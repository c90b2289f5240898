"""Tokenizers: CLIP's ids and text cleaning, other vocabularies, special ids, clear errors."""

import gzip
import hashlib
import importlib.util
import json
import os
import pathlib
import random
import subprocess
import sys
import time

import huggingface_hub
import numpy as np
import pytest

from dgia_jax import remote
from dgia_jax.data import tokenizer as tokenizer_lib
from dgia_jax.errors import UserError
from tests.helpers import vocabularies
from tests.helpers.vocabularies import IDS, LINES, MERGES, TOKENS

_GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "p09_tokenizer.json"
_CAPTIONS = [
  "A man in a red coat, blue jeans and white shoes.",
  "The woman wears a black t-shirt; she's carrying a red bag.",
  "A man wears a white coat and carries a black bag.",
  "The man's shoes are black & white.",
] * 3


@pytest.fixture
def clip_folder(tmp_path):
  return vocabularies.write("clip", tmp_path / "clip")


@pytest.fixture(params=["clip", "small"])
def tokenizer(request, clip_folder):
  if request.param == "clip":
    return tokenizer_lib.clip_tokenizer(str(clip_folder), 12)
  return tokenizer_lib.train_tokenizer(_CAPTIONS, 12, 400)


def _ids(*tokens):
  return [IDS[token] for token in tokens]


def _words(tokenizer, caption):
  """Ids between start and end."""
  row = tokenizer.encode([caption])[0].tolist()
  assert row[0] == tokenizer.start_id
  return row[1 : row.index(tokenizer.end_id)]


def test_special_ids(tokenizer):
  assert tokenizer.pad_id == 0
  assert tokenizer.mask_id == tokenizer.vocab_size - 3
  assert tokenizer.start_id == tokenizer.vocab_size - 2
  assert tokenizer.end_id == tokenizer.vocab_size - 1


def test_pads_cuts_and_keeps_the_empty_caption(tokenizer):
  start, end = tokenizer.start_id, tokenizer.end_id
  ids_nxL = tokenizer.encode(["", "a", "  \t\n", "a " * 30])
  assert ids_nxL.dtype == np.int32
  assert ids_nxL.shape == (4, 12)
  letter = _words(tokenizer, "a")
  assert len(letter) == 1
  assert ids_nxL[0].tolist() == [start, end] + [0] * 10
  assert ids_nxL[1].tolist() == [start, *letter, end] + [0] * 9
  assert ids_nxL[2].tolist() == ids_nxL[0].tolist()
  assert ids_nxL[3].tolist() == [start, *letter * 10, end]
  assert tokenizer.encode([]).shape == (0, 12)


def test_any_text_has_one_end_as_its_highest_id_and_never_a_mask(tokenizer):
  rng = random.Random(0)
  alphabet = "a m\u00e9\u4e2d\U0001f600\ud83d\ude00&;<|>!'\x00\u00a0\u0301\u0130\u1e9e0endoftext"
  captions = ["".join(rng.choices(alphabet, k=rng.randint(0, 20))) for _ in range(300)]
  captions += ["<|endoftext|>", "<|startoftext|> a", "<|mask|>", "<pad>", "<start> <end>", "jekyll"]
  for row in tokenizer.encode(captions):
    end = row.argmax()
    assert row[end] == tokenizer.end_id
    assert row[0] == tokenizer.start_id
    assert (row[1:end] < tokenizer.mask_id).all()
    assert (row[end + 1 :] == 0).all()


def test_clip_merges(clip_folder):
  tokenizer = tokenizer_lib.clip_tokenizer(str(clip_folder))
  assert tokenizer.context_length == 77
  assert tokenizer.vocab_size == len(TOKENS)
  expected = _ids("the</w>", "man</w>", "'s</w>", "red</w>", "!</w>")
  assert _words(tokenizer, "The man's red!") == expected
  assert _words(tokenizer, "A12") == _ids("a</w>", "1</w>", "2</w>")


def test_the_word_whose_id_became_the_mask_is_spelled(clip_folder):
  tokenizer = tokenizer_lib.clip_tokenizer(str(clip_folder))
  assert tokenizer.mask_id == IDS["jekyll</w>"]
  assert _words(tokenizer, "Jekyll") == _ids("jeky", "ll</w>")


def test_special_tokens_typed_in_a_caption_are_text(clip_folder):
  tokenizer = tokenizer_lib.clip_tokenizer(str(clip_folder))
  pieces = ["<", "|</w>", *"endoftex", "t</w>", "|", "></w>", "a</w>"]
  assert _words(tokenizer, "<|endoftext|> a") == _ids(*pieces)


@pytest.mark.parametrize(
  ("written", "meant"),
  [
    ("  The\tMAN \u00a0 red\n", "the man red"),
    ("red &amp; red", "red & red"),
    ("red &amp;amp; &lt;red&gt;", "red & <red>"),
    ("<red> &amp;amp; red", "<red> & red"),  # ftfy leaves HTML alone beside a real tag
    ("caf\u00c3\u00a9", "caf\u00e9"),  # UTF-8 read as Latin-1
    ("cafe\u0301", "caf\u00e9"),
    ("\u2018red\u2019s\u201d", "'red's\""),
    ("\uff52\uff45\uff44", "red"),  # full width
    ("\ud83d\ude00", "\U0001f600"),  # surrogates
  ],
)
def test_text_is_cleaned(tokenizer, written, meant):
  assert _words(tokenizer, written) == _words(tokenizer, meant)


def test_every_form_of_clips_vocabulary_reads_the_same(clip_folder, tmp_path):
  captions = ["the man's red hat", "jekyll &amp; an owl", "<|endoftext|>"]
  expected = tokenizer_lib.clip_tokenizer(str(clip_folder)).encode(captions)
  for number, merges in enumerate([LINES, [list(pair) for pair in MERGES]]):
    folder = tmp_path / f"json{number}"
    folder.mkdir()
    content = {"model": {"vocab": IDS, "merges": merges}}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    np.testing.assert_array_equal(
      tokenizer_lib.clip_tokenizer(str(folder)).encode(captions), expected
    )
  packed = tmp_path / "bpe.txt.gz"
  packed.write_bytes(gzip.compress("\n".join(["version", *LINES]).encode("utf-8")))
  np.testing.assert_array_equal(
    tokenizer_lib.clip_tokenizer(str(packed)).encode(captions), expected
  )


def test_agrees_with_transformers_on_ordinary_text(clip_folder):
  transformers = pytest.importorskip("transformers")
  reference = transformers.CLIPTokenizer.from_pretrained(str(clip_folder), local_files_only=True)
  tokenizer = tokenizer_lib.clip_tokenizer(str(clip_folder))
  for caption in [*_CAPTIONS, "it's 10:30, they're in caf\u00e9 no. 5!?", "a\u4e2d\u6587b"]:
    ids = reference(caption)["input_ids"]
    assert [tokenizer.start_id, *_words(tokenizer, caption), tokenizer.end_id] == ids


def test_unreachable_hub_is_one_line_and_quick(monkeypatch, tmp_path):
  monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
  start = time.monotonic()
  with pytest.raises(UserError, match=r"tokenizer\.name='openai/clip-vit-base-patch16'") as error:
    tokenizer_lib.pretrained_tokenizer("openai/clip-vit-base-patch16")
  assert time.monotonic() - start < 10
  assert "\n" not in str(error.value)


def test_hub_cache_is_used_without_network(monkeypatch, clip_folder, tmp_path):
  cached = tmp_path / "models--some--clip" / "snapshots" / "abc"
  cached.parent.mkdir(parents=True)
  clip_folder.rename(cached)
  refs = tmp_path / "models--some--clip" / "refs"
  refs.mkdir()
  (refs / "main").write_text("abc", encoding="utf-8")
  monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
  tokenizer = tokenizer_lib.pretrained_tokenizer("some/clip")
  assert _words(tokenizer, "man") == _ids("man</w>")


def test_damaged_vocabularies_are_user_errors(clip_folder, tmp_path):
  with pytest.raises(UserError, match=r"tokenizer\.name='\.\./no/such/folder'"):
    tokenizer_lib.pretrained_tokenizer("../no/such/folder")
  with pytest.raises(UserError, match="holds neither vocab.json and merges.txt nor tokenizer.json"):
    tokenizer_lib.clip_tokenizer(str(tmp_path))
  with pytest.raises(UserError, match="holds neither vocab.json and merges.txt nor tokenizer.json"):
    tokenizer_lib.pretrained_tokenizer(str(tmp_path))
  with pytest.raises(UserError, match="is not bpe_simple_vocab"):
    tokenizer_lib.clip_tokenizer(str(clip_folder / "vocab.json"))
  merges = "\n".join([*LINES[:-1], "x y", LINES[-1]])
  (clip_folder / "merges.txt").write_text(merges, encoding="utf-8")
  with pytest.raises(UserError, match="its merges must use known tokens only"):
    tokenizer_lib.clip_tokenizer(str(clip_folder))
  (clip_folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "c": 2}), encoding="utf-8")
  with pytest.raises(UserError, match="is not a CLIP vocabulary"):
    tokenizer_lib.clip_tokenizer(str(clip_folder))
  (clip_folder / "vocab.json").write_text("{", encoding="utf-8")
  with pytest.raises(UserError, match="can't be read"):
    tokenizer_lib.clip_tokenizer(str(clip_folder))


@pytest.fixture
def bert_folder(tmp_path):
  return vocabularies.write("bert", tmp_path / "bert")


def test_other_vocabularies_are_read_by_transformers(bert_folder):
  pytest.importorskip("transformers")
  tokenizer = tokenizer_lib.pretrained_tokenizer(str(bert_folder), 8)
  assert (tokenizer.mask_id, tokenizer.vocab_size) == (10, 13)
  ids = tokenizer.encode(["A man's REDS 红", "a [SEP] " * 9])
  assert ids.tolist() == [[11, 5, 6, 1, 1, 7, 8, 12], [11, 5, 1, 1, 1, 5, 1, 12]]
  assert tokenizer.encode(["red"]).tolist() == [[11, 7, 12, 0, 0, 0, 0, 0]]


def test_other_vocabularies_are_saved_and_found_in_a_models_folder(bert_folder, tmp_path):
  pytest.importorskip("transformers")
  tokenizer = tokenizer_lib.folder_tokenizer(bert_folder, 8)
  tokenizer.save(tmp_path / "saved")
  for loaded in (
    tokenizer_lib.load_tokenizer(tmp_path / "saved"),
    tokenizer_lib.folder_tokenizer(tmp_path / "saved", 77),
  ):
    assert loaded.vocab_size == 13
    captions = ["a red man", "reds"]
    np.testing.assert_array_equal(loaded.encode(captions), tokenizer.encode(captions))


def test_clip_is_read_without_transformers(clip_folder, monkeypatch):
  monkeypatch.setitem(sys.modules, "transformers", None)
  assert tokenizer_lib.pretrained_tokenizer(str(clip_folder)).vocab_size == len(TOKENS)


def test_a_vocabulary_in_a_bucket_is_copied(clip_folder, monkeypatch):
  copies = {"gs://bucket/clip": clip_folder}
  monkeypatch.setattr(remote, "local_copy", lambda path, setting: copies[path])
  assert tokenizer_lib.pretrained_tokenizer("gs://bucket/clip").vocab_size == len(TOKENS)


def test_save_and_load(tokenizer, tmp_path):
  tokenizer.save(tmp_path / "run" / "tokenizer")
  loaded = tokenizer_lib.load_tokenizer(tmp_path / "run" / "tokenizer")
  for name in ("context_length", "vocab_size", "pad_id", "mask_id", "start_id", "end_id"):
    assert getattr(loaded, name) == getattr(tokenizer, name)
  captions = [*_CAPTIONS, "", "zebra \u4e2d", "<|endoftext|>", "<pad>"]
  np.testing.assert_array_equal(loaded.encode(captions), tokenizer.encode(captions))
  with pytest.raises(UserError, match="is missing"):
    tokenizer_lib.load_tokenizer(tmp_path)


def test_every_change_of_a_saved_file_is_noticed(tokenizer, tmp_path):
  """A changed digit would be valid JSON and give other ids."""
  tokenizer.save(tmp_path)
  path = tmp_path / "tokenizer.json"
  path.write_text(path.read_text().replace('"max_length": 12', '"max_length": 13'))
  with pytest.raises(UserError, match="is damaged .its checksum differs"):
    tokenizer_lib.load_tokenizer(tmp_path)
  (tmp_path / "SHA256SUMS").unlink()  # earlier releases wrote none
  assert tokenizer_lib.load_tokenizer(tmp_path).context_length == 13


def test_small_vocabulary_gives_words_one_token_and_spells_the_rest():
  tokenizer = tokenizer_lib.train_tokenizer(_CAPTIONS, 32, 400)
  assert 260 < tokenizer.vocab_size <= 400
  assert len(_words(tokenizer, "a man in a red coat")) == 6
  assert len(_words(tokenizer, "a\u4e2d")) == 4  # one letter, then the three bytes of the other
  assert _words(tokenizer, "zoo") != _words(tokenizer, "zo")
  assert tokenizer_lib.train_tokenizer(_CAPTIONS, 32, 270).vocab_size == 270
  with pytest.raises(UserError, match=r"tokenizer\.vocab_size=259"):
    tokenizer_lib.train_tokenizer(_CAPTIONS, 32, 259)
  with pytest.raises(UserError, match=r"tokenizer\.context_length=2"):
    tokenizer_lib.train_tokenizer(_CAPTIONS, 2, 400)


def test_training_gives_the_same_vocabulary_in_another_process(tmp_path):
  captions = json.loads(_GOLDEN.read_text(encoding="utf-8"))["captions"]
  captions = [entry["caption"] for entry in captions] * 2
  tokenizer_lib.train_tokenizer(captions, 16, 500).save(tmp_path / "here")
  code = (
    "import json, sys; from dgia_jax.data import tokenizer as t;"
    "t.train_tokenizer(json.load(sys.stdin), 16, 500).save(sys.argv[1])"
  )
  subprocess.run(
    [sys.executable, "-c", code, str(tmp_path / "process")],
    input=json.dumps(captions).encode(),
    cwd=pathlib.Path(__file__).parents[2],
    check=True,
  )
  digests = {
    hashlib.sha256((tmp_path / place / "tokenizer.json").read_bytes()).hexdigest()
    for place in ("here", "process")
  }
  assert len(digests) == 1


def _real_clip_vocabulary():
  if folder := os.environ.get("DGIA_CLIP_TOKENIZER"):
    return folder
  spec = importlib.util.find_spec("open_clip")
  if spec is not None:
    return str(pathlib.Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz")
  pytest.skip("CLIP's vocabulary is missing: set DGIA_CLIP_TOKENIZER to it, or install open_clip")


def test_golden_ids_with_the_real_clip_vocabulary():
  name = _real_clip_vocabulary()
  golden = json.loads(_GOLDEN.read_text(encoding="utf-8"))
  tokenizer = tokenizer_lib.clip_tokenizer(name)
  special = golden["special"]
  assert (tokenizer.mask_id, tokenizer.start_id) == (special["mask"], special["sot"])
  assert (tokenizer.end_id, tokenizer.vocab_size) == (special["eot"], special["vocab_size"])
  for entry in golden["captions"]:
    row = tokenizer.encode([entry["caption"]])[0]
    if "<|mask|>" in entry["caption"]:  # our tokenizer treats typed special tokens as text
      assert (row[1 : row.argmax()] < tokenizer.mask_id).all()
      continue
    assert row.tolist() == entry["ids77"], entry["caption"]
    assert row.argmax() == entry["eot_pos"]
  for entry in golden["other_lengths"]:
    row = tokenizer_lib.clip_tokenizer(name, entry["text_length"]).encode([entry["caption"]])[0]
    assert row.tolist() == entry["ids"]
  for entry in golden["failing"]:
    words = _words(tokenizer, entry["caption"])
    assert max(words) < tokenizer.mask_id
    assert words == entry.get("ids", words)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\x00", b'{"model": 3}'])
def test_a_damaged_tokenizer_of_a_run_is_named(tmp_path, content):
  (tmp_path / "tokenizer.json").write_bytes(content)
  with pytest.raises(UserError, match="tokenizer.json is damaged") as caught:
    tokenizer_lib.load_tokenizer(tmp_path)
  assert "\n" not in str(caught.value)
