"""CLIP's vocabulary: its files as Hugging Face and OpenAI publish them, read and checked."""

import gzip
import json
import pathlib
import zlib

from tokenizers import models, pre_tokenizers

from dgia_jax.data.token_ids import NUM_SPECIAL
from dgia_jax.errors import UserError

FILES = ("vocab.json", "merges.txt")
JSON_FILE = "tokenizer.json"  # of the library `tokenizers`; it holds the same, and more
_START, _END = "<|startoftext|>", "<|endoftext|>"
_NUM_MERGES = 49152 - 256 - 2  # the merges CLIP uses, of those listed in its own file

Merges = list[tuple[str, ...]]


def read(path: pathlib.Path) -> models.BPE:
  """CLIP's byte pairs, without its last three tokens.

  Args:
    path: a folder with `FILES` (or only `JSON_FILE`), or CLIP's own `bpe_simple_vocab_16e6.txt.gz`.

  Raises:
    UserError: the files are missing or damaged, or are not CLIP's.
  """
  vocab, merges = _read_bpe(path) if path.is_file() else _read_folder(path)
  tokens = sorted(vocab, key=vocab.get)
  if (
    len(tokens) < NUM_SPECIAL
    or [vocab[token] for token in tokens] != list(range(len(tokens)))
    or tokens[-2:] != [_START, _END]
    or any(tokens[-3] in pair for pair in merges)
    # `tokenizers` panics, rather than raises, when a merge involves an unknown token.
    or not all(len(pair) == 2 and {*pair, "".join(pair)} <= vocab.keys() for pair in merges)
  ):
    raise UserError(
      f"tokenizer.name: {path} is not a CLIP vocabulary: its merges must use known tokens only,"
      f" and it must end with a token that no merge uses, {_START} and {_END}"
    )
  return models.BPE(
    vocab={token: vocab[token] for token in tokens[:-3]},
    merges=[pair for pair in merges if "".join(pair) != tokens[-3]],
    end_of_word_suffix="</w>",
  )


def is_clip(folder: pathlib.Path) -> bool:
  """Whether the vocabulary in a folder has CLIP's start token."""
  vocab = read_object(folder / FILES[0])
  if not (folder / FILES[1]).is_file():
    model = read_object(folder / JSON_FILE).get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else {}
  return isinstance(vocab, dict) and _START in vocab


def read_object(path: pathlib.Path) -> dict:
  """The JSON object in a file; {} if the file is missing, damaged, or holds something else."""
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError):
    return {}
  return content if isinstance(content, dict) else {}


def _read_folder(folder: pathlib.Path) -> tuple[dict[str, int], Merges]:
  """CLIP's vocabulary and merges from a folder as the hub stores it."""
  vocab_path, merges_path = (folder / file for file in FILES)
  try:
    if vocab_path.is_file() and merges_path.is_file():
      lines = merges_path.read_text(encoding="utf-8").split("\n")
      pairs = [line for line in lines if line.strip() and not line.startswith("#version")]
      vocab = json.loads(vocab_path.read_text(encoding="utf-8"))
    else:
      content = json.loads((folder / JSON_FILE).read_text(encoding="utf-8"))
      vocab, pairs = content["model"]["vocab"], content["model"]["merges"]
    if not all(type(number) is int for number in vocab.values()):
      raise ValueError("ids are whole numbers")
    merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in pairs]
    if not all(isinstance(part, str) for pair in merges for part in pair):
      raise ValueError("merges are pairs of tokens")
  except FileNotFoundError as error:
    names = " and ".join(FILES)
    raise UserError(f"tokenizer.name: {folder} holds neither {names} nor {JSON_FILE}") from error
  except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
    reason = repr(error)[:200]  # that of undecodable text holds all of it
    raise UserError(f"tokenizer.name: a file in {folder} can't be read ({reason})") from error
  return vocab, merges


def _read_bpe(path: pathlib.Path) -> tuple[dict[str, int], Merges]:
  """The same from CLIP's own file, which lists only merges; ids follow from their order."""
  try:
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
  except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
    raise UserError(f"tokenizer.name: {path} is not bpe_simple_vocab_16e6.txt.gz") from error
  merges = [tuple(line.split(" ")) for line in lines[1 : _NUM_MERGES + 1]]
  # CLIP numbers bytes that have a printable character first, and the other bytes after them.
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokens = letters + [letter + "</w>" for letter in letters]
  tokens += ["".join(pair) for pair in merges] + [_START, _END]
  return {token: number for number, token in enumerate(tokens)}, merges
