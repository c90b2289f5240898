"""The tokenizers of SigLIP and SigLIP 2, as transformers reads them, with their own ids.

A caption becomes its tokens, the end token, and padding up to the context length. There is no
start token. SigLIP pads with the end token itself, so the end is not found by its id: the text
tower reads the last position. SigLIP's tokenizer removes punctuation, SigLIP 2's does not; both
take lower case. A masked word becomes the mask token of SigLIP 2's vocabulary, and the unknown
token of SigLIP's, which has no mask.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dgia_jax import files
from dgia_jax.data.text_cleaning import clean_caption
from dgia_jax.errors import UserError
from dgia_jax.quiet_transformers import quiet_transformers

_CONFIG = "tokenizer_config.json"
# On the hub: those of SigLIP, and of SigLIP 2.
HUB_FILES = (("spiece.model", _CONFIG), ("tokenizer.json", _CONFIG))


class SiglipTokenizer:
  """Encodes captions to a fixed length.

  Attributes:
    context_length: L, number of ids per caption, the end included.
    vocab_size, mask_id, word_ids, first_word: as in `token_ids.Vocabulary`.
    pad_id, end_id: the other special ids.
  """

  first_word = 0

  def __init__(self, reader: Any, context_length: int):
    """Wraps a tokenizer of transformers.

    Raises:
      ValueError: its special tokens are not those of SigLIP.
    """
    self._reader = reader
    self.context_length = context_length
    self.vocab_size = len(reader)
    self.pad_id, self.end_id = reader.pad_token_id, reader.eos_token_id
    unknown_id, mask_id = reader.unk_token_id, reader.mask_token_id
    self.mask_id = unknown_id if mask_id is None else mask_id
    special = (self.pad_id, self.end_id, unknown_id, self.mask_id, reader.bos_token_id or 0)
    if None in special or max(special) > self.vocab_size // 2:
      raise ValueError("its padding, end and unknown token are not among the first ids")
    self.word_ids = range(max(special) + 1, self.vocab_size)

  def encode(self, captions: Sequence[str]) -> np.ndarray:
    """Returns int32 (len(captions), L): tokens, end, then padding.

    A caption that is too long keeps its first L - 1 tokens. Special tokens that are typed in a
    caption are ordinary text.
    """
    ids = np.full((len(captions), self.context_length), self.pad_id, np.int32)
    for row, caption in enumerate(captions):
      tokens = self._reader.encode(
        clean_caption(caption), add_special_tokens=False, split_special_tokens=True
      )
      tokens = [*tokens[: self.context_length - 1], self.end_id]
      ids[row, : len(tokens)] = tokens
    return ids

  def save(self, folder: pathlib.Path | str) -> None:
    """Writes the files that transformers reads to the folder, which is created if absent."""
    self._reader.save_pretrained(folder)
    path = pathlib.Path(folder) / _CONFIG
    content = json.loads(path.read_text(encoding="utf-8"))
    content |= {"model_max_length": self.context_length, "padding_side": "right"}
    if hasattr(self._reader, "add_eos_token"):  # not every version saves these flags
      content |= {"add_bos_token": False, "add_eos_token": True}
    files.write_json(path, content)


def read(folder: pathlib.Path, context_length: int) -> SiglipTokenizer:
  """Reads the tokenizer in the folder of a SigLIP model.

  Args:
    folder: holds tokenizer_config.json, and spiece.model or tokenizer.json.
    context_length: L, ids per caption, at least 2.

  Raises:
    UserError: transformers cannot read the files, or they are not those of a SigLIP model.
  """
  if context_length < 2:
    raise UserError(f"tokenizer.context_length={context_length} leaves no room for a token: use 2+")
  try:
    with quiet_transformers() as transformers:
      reader = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    return SiglipTokenizer(reader, context_length)
  except ImportError as error:
    raise UserError(
      f"tokenizer.name: SigLIP's tokenizer in {folder} needs two packages:"
      ' pip install -e ".[siglip]"'
    ) from error
  except Exception as error:  # transformers raises almost anything on files it cannot use
    reason = str(error).strip().split("\n")[0]
    raise UserError(
      f"tokenizer.name: {folder} holds no tokenizer of a SigLIP model ({reason}); models whose name"
      " starts with siglip need one, or a vocabulary of their own (tokenizer.name='')"
    ) from error
