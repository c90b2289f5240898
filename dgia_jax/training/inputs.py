"""What a run reads: the pairs of its dataset, and its tokenizer."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from dgia_jax import hub
from dgia_jax.data import annotations, datasets, tokenizer
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
  model that `config.pretrained` names, here or on the hub, or else learned from the training
  captions.
  """
  settings = config.tokenizer
  if settings.name:
    size = dual_encoder.SIZES.get(config.model.name)  # an unknown name is reported later
    is_siglip = size is not None and size.family.is_siglip
    return tokenizer.pretrained_tokenizer(settings.name, settings.context_length, is_siglip)
  folder = pathlib.Path(workdir) / workdir_lib.TOKENIZER
  if workdir_lib.is_claimed(workdir):
    return tokenizer.load_tokenizer(folder)
  source = _vocabulary_folder(config.pretrained)
  if source is not None:
    vocabulary = tokenizer.load_tokenizer(source)
    if vocabulary.context_length != settings.context_length:
      raise UserError(
        f"config.tokenizer.context_length={settings.context_length}: config.pretrained="
        f"{config.pretrained} has {vocabulary.context_length}; give the same"
      )
  else:
    vocabulary = tokenizer.train_tokenizer(
      train_captions, settings.context_length, settings.vocab_size
    )
  if jax.process_index() == 0:
    vocabulary.save(folder)
  return vocabulary


def _vocabulary_folder(source: str) -> pathlib.Path | None:
  """The folder with the vocabulary that belongs to the weights of `config.pretrained`, if any.

  Raises:
    UserError: it is a model on the Hugging Face hub whose files cannot be fetched.
  """
  if not source:
    return None
  path = pretrained.local_copy(source, "config.pretrained").expanduser()
  if workdir_lib.is_run(path):
    return path / workdir_lib.TOKENIZER
  if not path.exists():
    path = hub.fetch(
      source,
      *((*weights, tokenizer.FILE) for weights in pretrained.HUB_FILES),
      setting="config.pretrained",
      hint="download its folder elsewhere and give the path, or give config.tokenizer.name",
    )
  return path if tokenizer.is_saved(path) else None
