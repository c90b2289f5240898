"""Tokenizer files with the form of SigLIP's and SigLIP 2's, for a few captions."""

import json
import pathlib

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

CAPTIONS = [
  "a man in a red coat with a black bag",
  "a woman wearing blue jeans and white shoes",
  "two people walk near the green car",
  "person with umbrella and long hair",
]
_CONFIG = "tokenizer_config.json"
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")  # the first ids of SigLIP 2's vocabulary


def write_siglip(folder: pathlib.Path) -> pathlib.Path:
  """SigLIP's: a sentencepiece model whose first ids are padding, end and unknown.

  A test without the package is skipped.
  """
  sentencepiece = pytest.importorskip("sentencepiece")
  folder.mkdir(exist_ok=True)
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CAPTIONS), model_prefix=str(folder / "spiece"), vocab_size=36,
    pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
  )  # fmt: skip
  config = {"tokenizer_class": "SiglipTokenizer", "pad_token": "</s>", "eos_token": "</s>"}
  (folder / _CONFIG).write_text(json.dumps(config | {"model_max_length": 64}))
  return folder


def write_siglip_2(folder: pathlib.Path, vocab_size: int = 120) -> pathlib.Path:
  """SigLIP 2's: byte pairs as in Gemma's tokenizer."""
  import transformers

  learner = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
  learner.normalizer = normalizers.Replace(" ", "▁")
  learner.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size, special_tokens=[*SPECIAL], show_progress=False
  )
  learner.train_from_iterator(CAPTIONS, trainer)
  model = json.loads(learner.to_str())["model"]
  merges = [tuple(pair) for pair in model["merges"]]
  options = {"add_bos_token": False, "add_eos_token": True, "padding_side": "right"}
  transformers.GemmaTokenizer(vocab=model["vocab"], merges=merges, **options).save_pretrained(
    folder
  )
  path = folder / _CONFIG  # the flags are not all saved by every version
  path.write_text(json.dumps(json.loads(path.read_text()) | options))
  return folder
