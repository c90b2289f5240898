"""The weights that a run starts from: those of another run, or of a published checkpoint."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from dgia_jax import sharding
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
) -> tuple[Mapping[str, Any], Sequence[str]]:
  """Reads parameters onto a mesh.

  Args:
    source: the folder of a run, or what `pretrained.load_pretrained` takes; also in a bucket.
    params: the initial parameters; the returned ones have the same structure and sharding.
    image_size: (height, width) in pixels of the model's images.
    family: of the model.
    mesh: the mesh.

  Returns:
    The parameters, and the names of the tensors that the model does not use.

  Raises:
    UserError: the files cannot be read or do not fit the model.
  """
  folder = str(pretrained.local_copy(source, "config.pretrained"))
  if workdir_lib.is_run(folder):
    _check_same_family(folder, family)
    loaded = run_weights.load(folder, setting="config.pretrained").params
    unused = ()
    _check_same_shapes(source, loaded, params)
  else:
    weights = pretrained.load_pretrained(folder, params, image_size=image_size, family=family)
    loaded, unused = weights.params, weights.dropped
  return sharding.place(loaded, sharding.parameters(mesh, params)), unused


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
