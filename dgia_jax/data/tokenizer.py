"""Captions to token ids: with CLIP's vocabulary, another published one, or one of their own.

All of them use the special ids of `token_ids`, except SigLIP's (`siglip_tokenizer`), which keep
their own.

The text of a caption never produces the last three ids: "<|endoftext|>" typed in a caption is
ordinary text. (The released tokenizer obeys such text, which moves the end of the caption, and
fails on "jekyll".) We read CLIP's files ourselves and let `tokenizers` merge, because the mask
needs an id inside CLIP's table.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
import tokenizers
from absl import logging
from tokenizers import models, pre_tokenizers, processors, trainers

from dgia_jax import files, hub, remote, user_files
from dgia_jax.data import clip_vocabulary, siglip_tokenizer
from dgia_jax.data.siglip_tokenizer import CONFIG, SiglipTokenizer
from dgia_jax.data.text_cleaning import clean_caption, clean_first
from dgia_jax.data.token_ids import NUM_SPECIAL, TokenIds
from dgia_jax.errors import UserError

# A caption is cut into contractions, words, single digits and runs of other signs.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
CLIP_FILES, FILE = clip_vocabulary.FILES, clip_vocabulary.JSON_FILE
# Files of a model's tokenizer on the hub: CLIP's, SigLIP's, or another's that transformers reads.
HUB_FILES = (CLIP_FILES, *siglip_tokenizer.HUB_FILES, (FILE,))
_HUB_FILES = (CLIP_FILES, (FILE,), ("vocab.txt", CONFIG))
EXPORTED_FILES = siglip_tokenizer.FILES  # each kind of tokenizer exports some of these
VOCABULARIES = (FILE, siglip_tokenizer.SENTENCEPIECE)  # a folder has one of these two


class Tokenizer(TokenIds):
  """Encodes captions to a fixed length.

  Attributes:
    context_length: L, number of ids per caption, start and end included.
  """

  def __init__(self, backend: tokenizers.Tokenizer):
    """Wraps a backend of `_with_special_ids`, whose settings fix L and the special ids.

    Raises:
      ValueError: it does not put a start and an end, whose ids follow each other, around a caption.
    """
    encoding = backend.encode("")
    ids = [n for n, mask in zip(encoding.ids, encoding.attention_mask, strict=True) if mask]
    if not ids or ids[-1] < NUM_SPECIAL or ids[0] != ids[-1] - 1:
      raise ValueError("it does not put a start and an end around a caption")
    super().__init__(ids[-1] + 1)
    self._backend = backend
    self.context_length = backend.truncation["max_length"]

  def encode(self, captions: Sequence[str]) -> np.ndarray:
    """Returns int32 (len(captions), L): start, tokens, end, then padding.

    A caption that is too long keeps its first L - 2 tokens; its last id is still the end.
    """
    encodings = self._backend.encode_batch_fast([clean_caption(caption) for caption in captions])
    ids = np.array([encoding.ids for encoding in encodings], np.int32)
    return ids.reshape(len(captions), self.context_length)

  def words(self, caption: str) -> list[str]:
    """The words of a caption, cleaned, without digits and signs.

    A vocabulary of another library may cut captions into other parts than words.
    """
    text, splitter = clean_caption(caption), self._backend.pre_tokenizer
    parts = splitter.pre_tokenize_str(text) if splitter else [(text, (0, len(text)))]
    return [word for _, (start, end) in parts if (word := text[start:end]).isalpha()]

  def pieces(self, word: str) -> list[int]:
    """The ids that spell a word."""
    encoding = self._backend.encode(word, add_special_tokens=False)
    return [
      number for number, mask in zip(encoding.ids, encoding.attention_mask, strict=True) if mask
    ]

  def is_token(self, text: str) -> bool:
    """Whether a token has these letters, perhaps one that only other words are spelled with."""
    return self._backend.token_to_id(text) is not None

  @property
  def has_gaps(self) -> bool:
    """Whether no token has some id below the highest one, as in some published vocabularies."""
    return _num_ids(self._backend) != self._backend.get_vocab_size()

  def with_words(self, words: Sequence[str]) -> "Tokenizer":
    """A tokenizer with these words as tokens, in this order after all others but the special ids.

    The vocabulary has no gaps: otherwise `tokenizers` may assign ids inside a gap, or ids already
    in use.

    Args:
      words: as `words` gives them; `is_token` is False for each, as no two tokens can have the same
        letters.
    """
    backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
    backend.add_tokens(
      [tokenizers.AddedToken(word, single_word=True, normalized=True) for word in words]
    )
    return _with_special_ids(backend, self.context_length)

  def count_added(self, captions: Sequence[str], vocab_size: int) -> list[int]:
    """How often each of `added_words(vocab_size)` is encoded as its token; captions are not cut."""
    backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
    backend.no_truncation()
    backend.no_padding()
    first = vocab_size - NUM_SPECIAL
    encodings = backend.encode_batch_fast(
      [clean_caption(caption) for caption in captions], add_special_tokens=False
    )
    ids = np.concatenate([np.zeros(0, np.int64), *(encoding.ids for encoding in encodings)])
    added = ids[ids >= first].astype(np.int64) - first
    return np.bincount(added, minlength=self.mask_id - first).tolist()

  def added_words(self, vocab_size: int) -> list[str]:
    """The words with which `with_words` enlarged a tokenizer of this V, in the order of ids."""
    first = vocab_size - NUM_SPECIAL
    added = self._backend.get_added_tokens_decoder()
    return [added[number].content for number in sorted(added) if number >= first]

  def save(self, folder: pathlib.Path | str) -> None:
    """Writes `tokenizer.json` and its checksum to the folder, which is created if absent."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / FILE, self._backend.to_str(pretty=True))
    files.write_checksums(folder, [FILE])

  def export(self, folder: pathlib.Path | str) -> None:
    """Writes the files that transformers reads to the folder, which exists.

    There the tokenizer itself cleans captions, as far as `exportable_cleaning` goes.
    """
    folder, backend = pathlib.Path(folder), tokenizers.Tokenizer.from_str(self._backend.to_str())
    clean_first(backend)
    files.write_text(folder / FILE, backend.to_str(pretty=True))
    config = {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "model_max_length": self.context_length,
      "pad_token": backend.id_to_token(self.pad_id),
      "split_special_tokens": True,  # CLIP's padding is "!", which captions contain
      "model_input_names": ["input_ids"],  # causal attention needs no mask for the padding
    }
    files.write_json(folder / CONFIG, config)


def load_tokenizer(folder: pathlib.Path | str) -> Tokenizer:
  """Reads the file that `Tokenizer.save` wrote; raises UserError if it is missing or damaged.

  Logs a warning if tokens have no row of their own in a model's table. Earlier releases wrote such
  files for vocabularies with gaps, and their runs must still open.
  """
  path = pathlib.Path(folder) / FILE
  if not path.is_file():
    raise UserError(f"{path} is missing: the folder holds no saved tokenizer")
  try:
    if files.differs_from_checksum(path):
      raise ValueError("its checksum differs")
    backend = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the library raises plain exceptions
    reason = " ".join(str(error).split())[:200]
    raise UserError(f"{path} is damaged ({reason}); restore it from a copy of the run") from error
  try:
    if backend.truncation is None or not is_saved(folder):
      raise ValueError("it does not fix a context length, start and end")
    tokenizer = Tokenizer(backend)
  except ValueError as error:
    raise UserError(f"{path} was not saved by dgia_jax: {error}") from error
  if _num_ids(backend) > tokenizer.mask_id:
    logging.warning(
      "%s has tokens with ids from that of the mask, %d, on: the model reads rows of other tokens"
      " for them; train a new run", path, tokenizer.mask_id,
    )  # fmt: skip
  return tokenizer


def folder_tokenizer(
  folder: pathlib.Path | str, context_length: int, is_siglip: bool = False
) -> Tokenizer | SiglipTokenizer:
  """The tokenizer in the folder of a model: the file of `Tokenizer.save`, or published files.

  Args:
    folder, context_length, is_siglip: as in `pretrained_tokenizer`.

  Raises:
    UserError: the folder holds neither.
  """
  if is_saved(folder):
    return load_tokenizer(folder)
  return pretrained_tokenizer(str(folder), context_length, is_siglip)


def is_saved(folder: pathlib.Path | str) -> bool:
  """Whether a folder holds the file of `Tokenizer.save` rather than a published tokenizer."""
  post_processor = clip_vocabulary.read_object(pathlib.Path(folder) / FILE).get("post_processor")
  special = post_processor.get("special_tokens") if isinstance(post_processor, dict) else None
  return isinstance(special, dict) and "<start>" in special


def pretrained_tokenizer(
  name: str, context_length: int = 77, is_siglip: bool = False
) -> Tokenizer | SiglipTokenizer:
  """A published tokenizer: CLIP's, SigLIP's, or any other that transformers reads.

  Args:
    name: a folder or CLIP's own `bpe_simple_vocab_16e6.txt.gz`, both also at gs://, or a model on
      the Hugging Face hub such as "openai/clip-vit-base-patch16", which is looked up in the local
      cache first.
    context_length: L, ids per caption, at least 3.
    is_siglip: whether a SigLIP model reads the ids; they are then the tokenizer's own.

  Raises:
    UserError: no tokenizer can be reached under this name, or its files are damaged.
  """
  path = remote.local_copy(name, "tokenizer.name")
  if not user_files.exists(path, "tokenizer.name"):
    path = hub.fetch(
      name,
      *(siglip_tokenizer.HUB_FILES if is_siglip else _HUB_FILES),
      setting="tokenizer.name",
      hint=f"give a folder with {' and '.join(CLIP_FILES)}, or bpe_simple_vocab_16e6.txt.gz",
    )
  if is_siglip:
    return siglip_tokenizer.read(path, context_length)
  if path.is_file() or clip_vocabulary.is_clip(path):
    return clip_tokenizer(path, context_length)
  return _transformers_tokenizer(path, context_length)


def train_tokenizer(captions: Sequence[str], context_length: int, vocab_size: int) -> Tokenizer:
  """Learns a small vocabulary from the training captions; equal captions give equal ids.

  It learns byte pairs rather than whole words. A frequent word still gets its own token, so masking
  hides words as with CLIP; a typing error or a new word is spelled from known tokens, so that no
  unknown token is needed. A token that starts a word begins with a space, unlike CLIP's, which mark
  the end of a word: the trainer numbers letters with an end mark in random order.

  Args:
    captions: the training captions.
    context_length: L, ids per caption, at least 3.
    vocab_size: upper limit of V, at least 260 (256 bytes and 4 special ids). V is smaller if too
      few pairs occur twice; read `Tokenizer.vocab_size`.
  """
  if vocab_size < 260:
    raise UserError(f"tokenizer.vocab_size={vocab_size} is too small: use at least 260")
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size - NUM_SPECIAL,
    min_frequency=2,
    special_tokens=["<pad>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  learner = tokenizers.Tokenizer(models.BPE())
  learner.pre_tokenizer = _word_splitter(mark_word_start=True)
  learner.train_from_iterator((clean_caption(caption) for caption in captions), trainer)
  # Only the model is kept: the trainer also registers "<pad>" as text to look for in captions.
  backend = tokenizers.Tokenizer(learner.model)
  backend.pre_tokenizer = _word_splitter(mark_word_start=True)
  return _with_special_ids(backend, context_length)


def clip_tokenizer(path: pathlib.Path | str, context_length: int = 77) -> Tokenizer:
  """CLIP's tokenizer (V = 49408), always lower-casing.

  Args:
    path: a folder with `vocab.json` and `merges.txt` (or only `tokenizer.json`), or CLIP's own
      `bpe_simple_vocab_16e6.txt.gz`.
    context_length: L, ids per caption, at least 3.

  Raises:
    UserError: the files are missing or damaged, or are not CLIP's.
  """
  backend = tokenizers.Tokenizer(clip_vocabulary.read(pathlib.Path(path)))
  backend.pre_tokenizer = _word_splitter(mark_word_start=False)
  return _with_special_ids(backend, context_length)


def _transformers_tokenizer(folder: pathlib.Path, context_length: int) -> Tokenizer:
  """Any tokenizer that transformers reads; its own special tokens count as ordinary ones."""
  # Imported on use: that takes seconds, and CLIP's tokenizer needs no transformers.
  import transformers

  try:
    reader = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    backend = tokenizers.Tokenizer.from_str(reader.backend_tokenizer.to_str())
  except Exception as error:  # transformers raises almost anything on files it cannot use
    reason = str(error).strip().split("\n")[0]
    raise UserError(
      f"tokenizer.name: {folder} holds neither {' and '.join(CLIP_FILES)} nor {FILE} of a"
      f" tokenizer that transformers reads ({reason})"
    ) from error
  return _with_special_ids(backend, context_length)


def _word_splitter(mark_word_start: bool) -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True),
      pre_tokenizers.ByteLevel(add_prefix_space=mark_word_start, use_regex=False),
    ]
  )


def _with_special_ids(backend: tokenizers.Tokenizer, context_length: int) -> Tokenizer:
  """Puts mask, start and end above the backend's own ids; cuts and pads to `context_length`."""
  if context_length < 3:
    raise UserError(f"tokenizer.context_length={context_length} leaves no room for a token: use 3+")
  size, pad_token = _num_ids(backend), backend.id_to_token(0)
  if pad_token is None:
    raise UserError("tokenizer.name: no token of the vocabulary has the id 0, which pads captions")
  backend.post_processor = processors.TemplateProcessing(
    single="<start> $A <end>", special_tokens=[("<start>", size + 1), ("<end>", size + 2)]
  )
  backend.enable_truncation(context_length)
  backend.enable_padding(length=context_length, pad_id=0, pad_token=pad_token)
  return Tokenizer(backend)


def _num_ids(backend: tokenizers.Tokenizer) -> int:
  """One more than the highest id of a backend's own tokens: where ids have gaps, not their number.

  Ids of special tokens must be above all others, because the text tower finds the end by its id.
  """
  return max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
