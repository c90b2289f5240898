"""The anchor memory bank: one image and one text feature per training pair, over all devices.

Section 3.3. Rows are split over every device of the mesh and never leave their owner: features of
the batch are written on the device that owns their row, and of a search (`bank_search`) only the
winning rows travel. So the work and the traffic of a device fall with the number of devices, and no
array as large as the bank is ever created.

Features are stored unnormalised, as the moving average needs them, with their inverse norms beside
them for the search.

N counts padded bank rows here.
"""

import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from dgia_jax.method.losses import inverse_norm
from dgia_jax.sharding import BANK_AXES

# Row counts are padded to a multiple of this, so that the padded shape, and with it a checkpoint,
# is the same on every mesh of up to 1,024 devices (or three quarters of a power of two).
ROW_MULTIPLE = 3072

Leaf = Any  # an array; or its layout or shape, in a bank that describes another


@flax.struct.dataclass
class Bank:
  """The anchors: one row per training pair, padded."""

  image: Leaf  # (N, D) float32, unnormalised
  text: Leaf  # (N, D) float32, unnormalised
  image_inverse_norm: Leaf  # (N,) float32, 0 where the row was never written
  text_inverse_norm: Leaf  # (N,) float32, 0 where the row was never written
  group: Leaf  # (N,) int32, number of the image that the pair shows; -1 where never written
  confidence: Leaf = None  # (N,) float32, see `confidence_gate`; None unless its gate is "running"


def padded_rows(num_pairs: int) -> int:
  """Rows of a bank for `num_pairs` training pairs: the next multiple of `ROW_MULTIPLE`."""
  return -(-num_pairs // ROW_MULTIPLE) * ROW_MULTIPLE


def create(num_rows: int, dim: int, with_confidence: bool = False) -> Bank:
  """An empty bank, with a confidence per row or not.

  Call it inside jit with the layout as out_shardings.
  """
  return Bank(
    image=jnp.zeros((num_rows, dim), jnp.float32),
    text=jnp.zeros((num_rows, dim), jnp.float32),
    image_inverse_norm=jnp.zeros(num_rows, jnp.float32),
    text_inverse_norm=jnp.zeros(num_rows, jnp.float32),
    group=jnp.full(num_rows, -1, jnp.int32),
    confidence=jnp.zeros(num_rows, jnp.float32) if with_confidence else None,
  )


def gather(fields: Any, rows: Int[Array | np.ndarray, "..."], *, mesh: Mesh) -> Any:
  """Fetches bank rows by number; only these rows travel.

  Args:
    fields: one array of a Bank, or a tuple of several, each (N, ...).
    rows: row numbers of any shape; a number outside the bank gives zeros.
    mesh: the mesh that holds the bank.

  Returns:
    The same fields with the shape of `rows` in front, their first dimension split over all devices.
  """
  wanted = pad_rows(jnp.ravel(rows), mesh.size)

  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(P(), P(BANK_AXES)),
    out_specs=P(BANK_AXES),
    check_vma=False,
  )
  def gather_shards(rows, shards):
    num_rows = jax.tree.leaves(shards)[0].shape[0]
    local, owned = _own_rows(rows, num_rows, mesh)

    def fetch(field):
      taken = jnp.take(field, jnp.clip(local, 0, num_rows - 1), axis=0)
      mask = jnp.expand_dims(owned, tuple(range(1, taken.ndim)))
      # Every row has one owner, all others add zeros.
      return jax.lax.psum_scatter(jnp.where(mask, taken, 0), BANK_AXES, tiled=True)

    return jax.tree.map(fetch, shards)

  shape = jnp.shape(rows)
  restore = lambda padded: padded[: math.prod(shape)].reshape(*shape, *padded.shape[1:])
  return jax.tree.map(restore, gather_shards(wanted, fields))


def update(
  bank: Bank,
  index: Int[Array | np.ndarray, " B"],
  image_index: Int[Array | np.ndarray, " B"],
  image_features: Float[Array | np.ndarray, "B D"],
  text_features: Float[Array | np.ndarray, "B D"],
  new_weight: Float[Array | np.ndarray, " B"],
  *,
  mesh: Mesh,
  row_mask: Bool[Array | np.ndarray, " B"] | None = None,
  confidence: Float[Array | np.ndarray, " B"] | None = None,
) -> Bank:
  """Moves the batch's own rows toward its features, in place on their owners (section 3.3).

  row = w * feature + (1 - w) * row with w the weight of the new feature; a row that was never
  written becomes the feature.

  Args:
    bank: donate it to have it updated in place.
    index: own bank row of every pair; each row at most once.
    image_index: number of the image that every pair shows.
    image_features, text_features: unnormalised; constants for the gradient.
    new_weight: w in [0, 1].
    mesh: the mesh that holds the bank.
    row_mask: False for padded rows, which write nothing.
    confidence: replaces the rows' confidence, in a bank that has one.
  """
  if row_mask is not None:
    index = jnp.where(row_mask, index, -1)
  features = jax.lax.stop_gradient((image_features, text_features))
  features = tuple(feature.astype(jnp.float32) for feature in features)

  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(P(BANK_AXES), P(), P(), P(), P(), P()),
    out_specs=P(BANK_AXES),
    check_vma=False,
  )
  def update_shards(shard, index_B, image_index_B, features, weight_B, confidence_B):
    num_rows = shard.group.shape[0]
    local_B, _ = _own_rows(index_B, num_rows, mesh)
    source_B = jnp.clip(local_B, 0, num_rows - 1)
    weight_B = jnp.where(shard.group[source_B] < 0, 1.0, weight_B)[:, None]
    blend = lambda field, feature: weight_B * feature + (1 - weight_B) * field[source_B]
    image_BxD, text_BxD = blend(shard.image, features[0]), blend(shard.text, features[1])
    rows = Bank(
      image=image_BxD,
      text=text_BxD,
      image_inverse_norm=inverse_norm(image_BxD),
      text_inverse_norm=inverse_norm(text_BxD),
      group=image_index_B,
      confidence=None if shard.confidence is None else confidence_B,
    )
    return _scatter(shard, rows, index_B, mesh)

  return update_shards(bank, index, image_index, features, new_weight, confidence)


def write(fields: Any, index: Int[Array | np.ndarray, " B"], values: Any, *, mesh: Mesh) -> Any:
  """Replaces rows of arrays that are laid out as a bank is, in place on their owners.

  Args:
    fields: a tree of arrays (N, ...); donate it to have it updated in place.
    index: rows, each at most once; a number outside the arrays writes nothing.
    values: the same tree of arrays (B, ...).
    mesh: the mesh that holds the arrays.
  """

  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(P(BANK_AXES), P(), P()),
    out_specs=P(BANK_AXES),
    check_vma=False,
  )
  def write_shards(shards, index_B, values):
    return _scatter(shards, values, index_B, mesh)

  return write_shards(fields, index, values)


def pad_rows(array: Array, multiple: int) -> Array:
  """Appends rows of zeros up to a multiple."""
  missing = -array.shape[0] % multiple
  return jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))


def shard_index(mesh: Mesh) -> Any:
  """Position of this device's shard among all shards, inside shard_map."""
  index = 0
  for axis in BANK_AXES:
    index = index * mesh.shape[axis] + jax.lax.axis_index(axis)
  return index


def _own_rows(rows: Array, num_rows: int, mesh: Mesh) -> tuple[Array, Array]:
  """Positions in this device's shard, and whether it owns the row at all; inside shard_map."""
  local = rows - shard_index(mesh) * num_rows
  return local, (local >= 0) & (local < num_rows)


def _scatter(shards: Any, values: Any, index_B: Array, mesh: Mesh) -> Any:
  """Replaces the rows that this device owns; inside shard_map."""
  num_rows = jax.tree.leaves(shards)[0].shape[0]
  local_B, owned_B = _own_rows(index_B, num_rows, mesh)
  target_B = jnp.where(owned_B, local_B, num_rows)  # out of range: dropped by the scatter
  return jax.tree.map(lambda f, v: f.at[target_B].set(v, mode="drop"), shards, values)
