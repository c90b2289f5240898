"""Small vocabularies in the files of published ones."""

import json
import pathlib

from tokenizers import pre_tokenizers

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
# Like CLIP's: merges by rank; the last one produces a whole word, which gives up its id.
MERGES = [
  *[("a", "n</w>"), ("m", "an</w>"), ("t", "h"), ("th", "e</w>"), ("'", "s</w>")],
  *[("r", "e"), ("re", "d</w>"), ("j", "e"), ("k", "y"), ("l", "l</w>"), ("je", "ky")],
  ("jeky", "ll</w>"),
]
TOKENS = [*LETTERS, *[letter + "</w>" for letter in LETTERS]]
TOKENS += ["".join(pair) for pair in MERGES] + ["<|startoftext|>", "<|endoftext|>"]
IDS = {token: number for number, token in enumerate(TOKENS)}
LINES = [" ".join(pair) for pair in MERGES]
_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "red", "##s", "红")


def write(kind: str, folder: pathlib.Path) -> pathlib.Path:
  """Writes the files of a "clip" or "bert" vocabulary and returns their folder, which is new."""
  folder.mkdir()
  if kind == "clip":
    (folder / "vocab.json").write_text(json.dumps(IDS), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *LINES, ""]), encoding="utf-8")
  else:
    (folder / "vocab.txt").write_text("\n".join(_BERT), encoding="utf-8")
    config = json.dumps({"tokenizer_class": "BertTokenizer"})
    (folder / "tokenizer_config.json").write_text(config)
  return folder
