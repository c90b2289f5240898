"""What a run reads: the pairs of its dataset, and its tokenizer."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from dgia_jax import hub, user_files
from dgia_jax.data import annotations, datasets, new_words, tokenizer
from dgia_jax.data import pairs as pairs_lib
from dgia_jax.errors import UserError
from dgia_jax.models import dual_encoder, pretrained
from dgia_jax.training import workdir as workdir_lib


def load_builder(config: ConfigDict) -> Any:
  """The reader of the configured dataset, which is built first if it does not exist."""
  settings = config.dataset
  # Not every dataset has such files.
  files = {name: settings[name] for name in ("source", "annotations", "images") if settings[name]}
  return datasets.load_builder(
    settings.name,
    image_size=tuple(settings.image_size),
    data_dir=settings.data_dir,
    **files,
    **settings.options,
  )


def load_splits(config: ConfigDict) -> dict[str, pairs_lib.PairTable]:
  """Reads the splits of the configured dataset; see `load_builder`."""
  settings = config.dataset
  builder = load_builder(config)
  available = [split for split in annotations.SPLITS if split in builder.info.splits]
  for needed in ("train", "test", config.eval.select_on):
    if needed not in available:
      raise UserError(
        f"dataset {settings.name} has no {needed} split (found: {', '.join(available)});"
        + (" set config.eval.select_on=test" if needed == "val" else " check its annotations")
      )
  image_size = tuple(settings.image_size)
  return {
    split: pairs_lib.load_pairs(builder, split, image_size, settings.resize) for split in available
  }


def load_tokenizer(
  config: ConfigDict, workdir: pathlib.Path | str, train_captions: Sequence[str]
) -> tokenizer.Tokenizer | tokenizer.SiglipTokenizer:
  """Returns the tokenizer of CLIP or SigLIP, or one with a vocabulary that belongs to this run.

  Such a vocabulary is stored in the working directory. It is copied from the run or the converted
  model that `config.pretrained` names, here or on the hub, with `tokenizer.new_words` added, or
  else learned from the training captions.

  Raises:
    UserError: the vocabulary cannot be read, or the settings do not fit it.
  """
  settings = config.tokenizer
  if settings.name:
    size = dual_encoder.SIZES.get(config.model.name)  # an unknown name is reported later
    is_siglip = size is not None and size.family.is_siglip
    return tokenizer.pretrained_tokenizer(settings.name, settings.context_length, is_siglip)
  folder = pathlib.Path(workdir) / workdir_lib.TOKENIZER
  if workdir_lib.is_claimed(workdir):
    return tokenizer.load_tokenizer(folder)
  vocabulary = _pretrained_vocabulary(config)
  if vocabulary is not None:
    if settings.new_words:
      vocabulary = new_words.add_new_words(vocabulary, train_captions, settings.new_words)
  else:
    vocabulary = tokenizer.train_tokenizer(
      train_captions, settings.context_length, settings.vocab_size
    )
  if jax.process_index() == 0:
    vocabulary.save(folder)
  return vocabulary


def pieces_of_new_words(
  config: ConfigDict, vocabulary: tokenizer.Tokenizer | tokenizer.SiglipTokenizer
) -> list[list[int]]:
  """How the vocabulary of `config.pretrained` spells the words that the run's own one adds to it.

  Args:
    config: the resolved config.
    vocabulary: the run's.

  Returns:
    The ids of the pieces of each added word, in the order of the added ids.
  """
  if config.tokenizer.name or not config.tokenizer.new_words:
    return []
  original = _pretrained_vocabulary(config)
  return [] if original is None else new_words.pieces_of_new_words(original, vocabulary)


def _pretrained_vocabulary(config: ConfigDict) -> tokenizer.Tokenizer | None:
  """The vocabulary that belongs to the weights of `config.pretrained`, if any.

  Raises:
    UserError: it cannot be read, or has another context length than the config.
  """
  folder = _vocabulary_folder(config.pretrained)
  if folder is None:
    return None
  vocabulary, context_length = tokenizer.load_tokenizer(folder), config.tokenizer.context_length
  if vocabulary.context_length != context_length:
    raise UserError(
      f"config.tokenizer.context_length={context_length}: config.pretrained="
      f"{config.pretrained} has {vocabulary.context_length}; give the same"
    )
  return vocabulary


def _vocabulary_folder(source: str) -> pathlib.Path | None:
  """The folder with the vocabulary that belongs to the weights of `config.pretrained`, if any.

  Raises:
    UserError: it is a model on the Hugging Face hub whose files cannot be fetched.
  """
  if not source:
    return None
  path = pretrained.local_copy(source, "config.pretrained")
  if workdir_lib.is_run(path):
    return path / workdir_lib.TOKENIZER
  if not user_files.exists(path, "config.pretrained"):
    path = hub.fetch(
      source,
      *((*weights, tokenizer.FILE) for weights in pretrained.HUB_FILES),
      also=pretrained.PREPROCESSING_FILES,
      setting="config.pretrained",
      hint="download its folder elsewhere and give the path, or give config.tokenizer.name",
    )
  return path if tokenizer.is_saved(path) else None
