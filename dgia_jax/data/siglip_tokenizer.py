"""The tokenizers of SigLIP and SigLIP 2, as transformers reads them, with their own ids.

A caption becomes its tokens, the end token, and padding up to the context length. There is no
start token. SigLIP pads with the end token itself, so the end is not found by its id: the text
tower reads the last position. SigLIP's tokenizer removes punctuation, SigLIP 2's does not; both
take lower case. A masked word becomes the mask token of SigLIP 2's vocabulary, and the unknown
token of SigLIP's, which has no mask.
"""

import errno
import json
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import processors

from dgia_jax import files, full_disk
from dgia_jax.data.clip_vocabulary import JSON_FILE
from dgia_jax.data.text_cleaning import clean_caption, clean_first
from dgia_jax.errors import UserError
from dgia_jax.quiet_transformers import quiet_transformers

CONFIG = "tokenizer_config.json"
SENTENCEPIECE = "spiece.model"
# On the hub: those of SigLIP, and of SigLIP 2.
HUB_FILES = ((SENTENCEPIECE, CONFIG), (JSON_FILE, CONFIG))
# What `SiglipTokenizer.export` writes; not every version of transformers has the last two.
FILES = (SENTENCEPIECE, JSON_FILE, CONFIG, "special_tokens_map.json", "added_tokens.json")
_MASK = "<mask>"
# What transformers writes to the config about the folder that was read, not about the tokenizer.
_ABOUT_THE_READER = ("is_local", "local_files_only", "name_or_path")


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
    self.vocab_size = max(reader.get_vocab().values()) + 1  # not their number: ids may have gaps
    self.pad_id, self.end_id = reader.pad_token_id, reader.eos_token_id
    unknown_id = reader.unk_token_id
    # Only some versions call it their mask. What is not in the vocabulary has the unknown id.
    self.mask_id = reader.convert_tokens_to_ids(_MASK)
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

  def export(self, folder: pathlib.Path | str) -> None:
    """Writes the files that transformers reads to the folder, which is created if absent.

    SigLIP 2's then cleans captions itself, as far as `exportable_cleaning` goes. SigLIP's is a
    sentencepiece model, to which only transformers' own cleaning can be added: lower case, and no
    punctuation.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = self._written_by_transformers(folder)
    config = json.loads(written[CONFIG]) | {
      "model_max_length": self.context_length,
      "padding_side": "right",
      "model_input_names": ["input_ids"],  # SigLIP reads padding like text
    }
    if self._reader.is_fast:
      # Its own class would be built from the vocabulary alone, without the cleaning.
      config["tokenizer_class"] = "PreTrainedTokenizerFast"
      config["split_special_tokens"] = True
      config.pop("added_tokens_decoder", None)  # some versions repeat here what the backend lists
      written[JSON_FILE] = self._cleaning_backend().to_str(pretty=True).encode()
    else:
      config["do_lower_case"] = True
    for name in _ABOUT_THE_READER:
      config.pop(name, None)
    if hasattr(self._reader, "add_eos_token"):  # not every version saves these flags
      config |= {"add_bos_token": False, "add_eos_token": True}
    for name in written.keys() & set(FILES) - {CONFIG}:
      files.write_bytes(folder / name, written[name])
    files.write_json(folder / CONFIG, config)

  def _written_by_transformers(self, parent: pathlib.Path) -> dict[str, bytes]:
    """{name: content} of the files that the reader saves, to a temporary folder in `parent`.

    A full disk is an OSError, as when other files of `parent` are written.
    """
    with tempfile.TemporaryDirectory(prefix=".tokenizer-", dir=parent) as folder:
      try:
        self._reader.save_pretrained(folder)
      except Exception as error:  # `tokenizers` raises nothing more special
        if full_disk.is_cause(error):
          raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder) from error
        raise
      return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}

  def _cleaning_backend(self) -> tokenizers.Tokenizer:
    """The reader's backend, which cleans captions first and ends them."""
    content = json.loads(self._reader.backend_tokenizer.to_str())
    # Added tokens are looked for before anything is cleaned, and cleaned captions have no line
    # breaks, which are among them. Those that the model lacks stay: without them ids would move.
    known = content["model"]["vocab"]
    content["added_tokens"] = [
      token
      for token in content["added_tokens"]
      if token["content"].strip() or token["content"] not in known
    ]
    content |= {"truncation": None, "padding": None}
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    clean_first(backend)
    end = self._reader.eos_token
    backend.post_processor = processors.TemplateProcessing(
      single=f"$A {end}", special_tokens=[(end, self.end_id)]
    )
    return backend


def read(folder: pathlib.Path, context_length: int) -> SiglipTokenizer:
  """Reads the tokenizer in the folder of a SigLIP model.

  Args:
    folder: holds tokenizer_config.json, and spiece.model or tokenizer.json.
    context_length: L, ids per caption, at least 2.

  Raises:
    UserError: transformers cannot read the files, or they are not those of a SigLIP model, or they
      have changed since a conversion wrote them.
  """
  if context_length < 2:
    raise UserError(f"tokenizer.context_length={context_length} leaves no room for a token: use 2+")
  try:
    for path in (folder / SENTENCEPIECE, folder / JSON_FILE):
      if path.is_file() and files.differs_from_checksum(path):
        raise UserError(f"{path} is damaged (its checksum differs); restore it from a copy")
    with quiet_transformers() as transformers:
      reader = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    return SiglipTokenizer(reader, context_length)
  except UserError:
    raise
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
