"""The weights that a run starts from: those of another run, or of a published checkpoint."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dgia_jax import sharding
from dgia_jax.data import token_ids
from dgia_jax.errors import UserError
from dgia_jax.models import dual_encoder, pretrained
from dgia_jax.models.families import Family
from dgia_jax.training import run_weights
from dgia_jax.training import workdir as workdir_lib

_MAX_NAMES = 12  # in one line about tensors that are not used


def load(
  source: str,
  params: Mapping[str, Any],
  *,
  image_size: tuple[int, int],
  family: Family,
  mesh: jax.sharding.Mesh,
  new_words: Sequence[Sequence[int]] = (),
) -> tuple[Mapping[str, Any], Sequence[str]]:
  """Reads parameters onto a mesh.

  Args:
    source: the folder of a run, or what `pretrained.load_pretrained` takes; also in a bucket.
    params: the initial parameters; the returned ones have the same structure and sharding.
    image_size: (height, width) in pixels of the model's images.
    family: of the model.
    mesh: the mesh.
    new_words: of each word that the run's vocabulary adds to that of the source, the ids of its
      pieces there. The word's embedding starts as their mean.

  Returns:
    The parameters, and the names of the tensors that the model does not use.

  Raises:
    UserError: the files cannot be read or do not fit the model.
  """
  folder = str(pretrained.local_copy(source, "config.pretrained"))
  stored = _without_new_words(params, len(new_words))  # the structure that the source has
  if workdir_lib.is_run(folder):
    _check_same_family(folder, family)
    loaded = run_weights.load(folder, setting="config.pretrained").params
    unused = ()
    _check_same_shapes(source, loaded, stored)
  else:
    weights = pretrained.load_pretrained(folder, stored, image_size=image_size, family=family)
    loaded, unused = weights.params, weights.dropped
  loaded = _with_new_words(loaded, new_words)
  return sharding.place(loaded, sharding.parameters(mesh, params)), unused


def _without_new_words(params: Mapping[str, Any], num_words: int) -> Mapping[str, Any]:
  """The parameters, of which only shapes and types will be read, with a shorter table of tokens."""
  if not num_words:
    return params
  table = params["text"]["token_embedding"]
  shape = (table.shape[0] - num_words, *table.shape[1:])
  return _with_table(params, jax.ShapeDtypeStruct(shape, table.dtype))


def _with_new_words(
  params: Mapping[str, Any], new_words: Sequence[Sequence[int]]
) -> Mapping[str, Any]:
  """The parameters with a row for each new word, before the rows of the special ids."""
  if not new_words:
    return params
  table = np.asarray(params["text"]["token_embedding"])
  rows = np.stack([table[list(pieces)].mean(axis=0) for pieces in new_words])
  ordinary, special = np.split(table, [len(table) - token_ids.NUM_SPECIAL])
  return _with_table(params, np.concatenate([ordinary, rows, special]))


def _with_table(params: Mapping[str, Any], table: Any) -> Mapping[str, Any]:
  return {**params, "text": {**params["text"], "token_embedding": table}}


def summary(names: Sequence[str]) -> str:
  """The tensors that a model does not use, in a few words: their modules with counts, if many.

  A checkpoint of a program that trains a CLIP also holds its heads and the optimiser's state.
  """
  if len(names) <= _MAX_NAMES:
    return ", ".join(names) or "none"
  modules = collections.Counter(".".join(name.split(".")[:2]) for name in names)
  parts = [f"{module} ({count})" for module, count in sorted(modules.items())]
  hidden = len(parts) - _MAX_NAMES
  return ", ".join(parts[:_MAX_NAMES]) + (f" and {hidden} more" if hidden > 0 else "")


def _check_same_family(source: str, family: Family) -> None:
  """Raises UserError if a run's model computes differently, which no shape shows."""
  name = workdir_lib.read_config(source)["model"]["name"]
  size = dual_encoder.SIZES.get(name)
  if size and size.family != family:
    raise UserError(
      f"config.pretrained={source} is a run of {name}, which is {size.family.name};"
      f" config.model.name is {family.name}: give config.model.name={name}"
    )


def _check_same_shapes(source: str, loaded: Mapping, params: Mapping) -> None:
  """Raises UserError, naming the parameters, if a run's parameters belong to another model."""
  shapes = lambda tree: {name: array.shape for name, array in pretrained.flatten(tree).items()}
  theirs, ours = shapes(loaded), shapes(params)
  differing = sorted(
    name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)
  )
  if differing:
    raise UserError(
      f"config.pretrained={source} is a run of another model: {', '.join(differing[:4])}"
      f"{', ...' if len(differing) > 4 else ''} differ; give the same model.name, image size and"
      " tokenizer, or convert it (python -m dgia_jax.convert) to have its positions resized"
    )
