"""Captions to token ids, with CLIP's vocabulary or with a small one trained on the captions.

Both kinds clean the text, split it into words and apply byte-pair merges in the same way, and both
lay out their ids alike, because the text tower finds the end of a caption as the highest id in it:

    0            padding (in CLIP's vocabulary also "!" before another sign; it is never masked)
    1 ... V-4    ordinary tokens, the ones that the masked view may hide
    V-3          the mask; CLIP's last token, "jekyll", gives its id away, and the word is spelled
                 from smaller pieces instead
    V-2, V-1     start and end of a caption

Nothing a caption says can produce the last three ids: "<|endoftext|>" typed in a caption is read as
ordinary text. (The released tokenizer obeys such text, which moves the end of the caption, and
fails on "jekyll".) `tokenizers` does the merging; transformers' CLIPTokenizer is not used to find
the files, because when it can't find them it retries for minutes and then returns an empty
vocabulary without an error.
"""

import gzip
import html
import json
import pathlib
import zlib
from collections.abc import Sequence

import ftfy
import huggingface_hub
import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, processors, trainers

from dgia_jax.errors import UserError

# A caption is cut into contractions, words, single digits and runs of other signs.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_CLIP_START, _CLIP_END = "<|startoftext|>", "<|endoftext|>"
_CLIP_FILES = ("vocab.json", "merges.txt")
_CLIP_NUM_MERGES = 49152 - 256 - 2  # of the merges listed in CLIP's own file, those that it uses
_FILE = "tokenizer.json"
_HUB_TIMEOUT_SECONDS = 5


class Tokenizer:
  """Encodes captions to a fixed length; see the module docstring for the ids.

  Attributes:
    context_length: L, number of ids of every caption, start and end included.
    vocab_size: V, the number of rows an embedding table needs.
    pad_id, mask_id, start_id, end_id: the special ids; maskable ids are 0 < id < mask_id.
  """

  def __init__(self, backend: tokenizers.Tokenizer):
    """Wraps a backend whose model holds the ordinary tokens and whose settings fix L."""
    self._backend = backend
    self.context_length = backend.truncation["max_length"]
    self.pad_id = 0
    self.mask_id = backend.get_vocab_size()
    self.start_id = self.mask_id + 1
    self.end_id = self.mask_id + 2
    self.vocab_size = self.mask_id + 3

  def encode(self, captions: Sequence[str]) -> np.ndarray:
    """Returns (len(captions), L) int32: start, tokens, end, then padding.

    A caption too long for L keeps its first L - 2 tokens; its last id is still the end.
    """
    encodings = self._backend.encode_batch_fast([_clean(caption) for caption in captions])
    ids = np.array([encoding.ids for encoding in encodings], np.int32)
    return ids.reshape(len(captions), self.context_length)

  def save(self, folder):
    """Writes `tokenizer.json` into the folder, which is made when absent."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    self._backend.save(str(folder / _FILE))


def load_tokenizer(folder) -> Tokenizer:
  """Reads what `Tokenizer.save` wrote; UserError when it is not there."""
  path = pathlib.Path(folder) / _FILE
  if not path.is_file():
    raise UserError(f"{path} is missing: the folder holds no saved tokenizer")
  backend = tokenizers.Tokenizer.from_file(str(path))
  if backend.truncation is None or backend.post_processor is None:
    raise UserError(f"{path} was not saved by dgia_jax: it does not fix a context length")
  return Tokenizer(backend)


def folder_tokenizer(folder, context_length: int) -> Tokenizer:
  """The tokenizer of a Hugging Face CLIP folder: CLIP's own files, or what `Tokenizer.save` wrote.

  Raises:
    UserError: the folder holds neither.
  """
  path = pathlib.Path(folder) / _FILE
  try:
    post_processor = json.loads(path.read_text(encoding="utf-8")).get("post_processor") or {}
  except (OSError, ValueError):
    post_processor = {}  # `clip_tokenizer` looks for other files, and says what is wrong
  if "<start>" in post_processor.get("special_tokens", {}):
    return load_tokenizer(folder)
  return clip_tokenizer(str(folder), context_length)


def train_tokenizer(captions: Sequence[str], context_length: int, vocab_size: int) -> Tokenizer:
  """Learns a small vocabulary from the training captions; the same captions give the same ids.

  Byte pairs rather than whole words: a word seen often still gets one token of its own, so masking
  hides words as with CLIP, while a typing error or a new word at test time is spelled from known
  pieces, so that no unknown token is needed. A token that starts a word carries a space in front
  instead of CLIP's end mark, because the trainer numbers end-marked letters in random order.

  Args:
    captions: the training captions.
    context_length: L, ids per caption, at least 3.
    vocab_size: upper limit of V, at least 260 (256 bytes and 4 special ids). Fewer are used when
      the captions hold fewer pairs that occur twice; read `Tokenizer.vocab_size`.
  """
  if vocab_size < 260:
    raise UserError(f"tokenizer.vocab_size={vocab_size} is too small: use at least 260")
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size - 3,
    min_frequency=2,
    special_tokens=["<pad>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  learner = tokenizers.Tokenizer(models.BPE())
  learner.pre_tokenizer = _word_splitter(mark_word_start=True)
  learner.train_from_iterator((_clean(caption) for caption in captions), trainer)
  # Only the model is kept: the trainer also registers "<pad>" as text to look for in captions.
  return _assemble(learner.model, mark_word_start=True, context_length=context_length)


def clip_tokenizer(name: str, context_length: int = 77) -> Tokenizer:
  """CLIP's tokenizer (V = 49408), always lower-casing.

  Args:
    name: a folder with `vocab.json` and `merges.txt` (or only `tokenizer.json`), CLIP's own
      `bpe_simple_vocab_16e6.txt.gz`, or a model on the Hugging Face hub such as
      "openai/clip-vit-base-patch16", which is looked up in the local cache first.
    context_length: L, ids per caption, at least 3.

  Raises:
    UserError: no vocabulary can be reached under this name, or it is not CLIP's kind.
  """
  path = pathlib.Path(name).expanduser()
  if path.is_file():
    vocab, merges = _read_clip_bpe(path)
  else:
    vocab, merges = _read_folder(path if path.is_dir() else _hub_folder(name))
  tokens = sorted(vocab, key=vocab.get)
  if (
    [vocab[token] for token in tokens] != list(range(len(tokens)))
    or tokens[-2:] != [_CLIP_START, _CLIP_END]
    or any(tokens[-3] in pair for pair in merges)
    # `tokenizers` panics rather than raises when a merge makes or takes an unknown token.
    or not all(len(pair) == 2 and {*pair, "".join(pair)} <= vocab.keys() for pair in merges)
  ):
    raise UserError(
      f"tokenizer.name={name!r} is not a CLIP vocabulary: its merges must use known tokens only,"
      f" and it must end with a token that no merge uses, {_CLIP_START} and {_CLIP_END}"
    )
  model = models.BPE(
    vocab={token: vocab[token] for token in tokens[:-3]},
    merges=[pair for pair in merges if "".join(pair) != tokens[-3]],
    end_of_word_suffix="</w>",
  )
  return _assemble(model, mark_word_start=False, context_length=context_length)


def _clean(caption: str) -> str:
  """Repairs broken characters, resolves HTML (also when escaped twice), one space, lower case."""
  text = html.unescape(html.unescape(ftfy.fix_text(caption)))
  return " ".join(text.split()).lower()


def _word_splitter(mark_word_start: bool) -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True),
      pre_tokenizers.ByteLevel(add_prefix_space=mark_word_start, use_regex=False),
    ]
  )


def _assemble(model: models.BPE, *, mark_word_start: bool, context_length: int) -> Tokenizer:
  """Puts the special ids above the model's own, cuts and pads to context_length."""
  if context_length < 3:
    raise UserError(f"tokenizer.context_length={context_length} leaves no room for a token: use 3+")
  backend = tokenizers.Tokenizer(model)
  backend.pre_tokenizer = _word_splitter(mark_word_start)
  size = backend.get_vocab_size()
  backend.post_processor = processors.TemplateProcessing(
    single="<start> $A <end>", special_tokens=[("<start>", size + 1), ("<end>", size + 2)]
  )
  backend.enable_truncation(context_length)
  backend.enable_padding(length=context_length, pad_id=0, pad_token=backend.id_to_token(0))
  return Tokenizer(backend)


def _read_folder(folder: pathlib.Path):
  """vocab {token: id} and merges [(left, right)] from a folder as the hub keeps it."""
  vocab_path, merges_path = (folder / file for file in _CLIP_FILES)
  try:
    if vocab_path.is_file() and merges_path.is_file():
      lines = merges_path.read_text(encoding="utf-8").split("\n")
      pairs = [line for line in lines if line.strip() and not line.startswith("#version")]
      vocab = json.loads(vocab_path.read_text(encoding="utf-8"))
    else:
      content = json.loads((folder / _FILE).read_text(encoding="utf-8"))
      vocab, pairs = content["model"]["vocab"], content["model"]["merges"]
  except FileNotFoundError as error:
    files = " and ".join(_CLIP_FILES)
    raise UserError(f"tokenizer.name: {folder} holds neither {files} nor {_FILE}") from error
  except (ValueError, KeyError) as error:
    raise UserError(f"tokenizer.name: a file in {folder} can't be read ({error!r})") from error
  return vocab, [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in pairs]


def _read_clip_bpe(path: pathlib.Path):
  """The same from CLIP's own file, which lists merges only; ids follow from their order."""
  try:
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
  except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
    raise UserError(f"tokenizer.name: {path} is not bpe_simple_vocab_16e6.txt.gz") from error
  merges = [tuple(line.split(" ")) for line in lines[1 : _CLIP_NUM_MERGES + 1]]
  # CLIP numbers bytes with a printable character of their own first; the others come after them.
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokens = letters + [letter + "</w>" for letter in letters]
  tokens += ["".join(pair) for pair in merges] + [_CLIP_START, _CLIP_END]
  return {token: number for number, token in enumerate(tokens)}, merges


def _hub_folder(name: str) -> pathlib.Path:
  """Folder of the hub's cache with the vocabulary, fetched when it is not there yet."""
  try:
    paths = [huggingface_hub.try_to_load_from_cache(name, file) for file in _CLIP_FILES]
    if not all(isinstance(path, str) for path in paths):
      # Downloads are retried for half a minute each; one short question shows if the hub answers.
      huggingface_hub.HfApi().model_info(name, timeout=_HUB_TIMEOUT_SECONDS)
      paths = [huggingface_hub.hf_hub_download(name, file) for file in _CLIP_FILES]
  except Exception as error:  # the class depends on the network library that the hub is built on
    reason = str(error).split("\n")[0]
    raise UserError(
      f"tokenizer.name={name!r} is no local folder and can't be fetched from the hub ({reason}):"
      f" give a folder with {' and '.join(_CLIP_FILES)}, or bpe_simple_vocab_16e6.txt.gz"
    ) from error
  return pathlib.Path(paths[0]).parent
