"""Ranks captions of the whole memory bank by their similarity to an image. Not in the paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from dgia_jax.method import bank_search, memory_bank
from dgia_jax.method.losses import normalize
from dgia_jax.sharding import BANK_AXES


def caption_ranks(
  bank: memory_bank.Bank,
  image_features: Float[Array | np.ndarray, "B D"],
  text_features: Float[Array | np.ndarray, "B D"],
  image_index: Int[Array | np.ndarray, " B"],
  *,
  mesh: Mesh,
  block_rows: int = 0,
) -> Int[Array, " B"]:
  """Rank of every pair's caption among the bank's captions for the pair's image; 0 is the best.

  The number of rows of other images whose caption is more similar to the image. Costs as much as a
  search, in the same memory; one number per query and device travels.

  Args:
    bank: rows laid out over the whole mesh.
    image_features, text_features: of the pairs, unnormalised.
    image_index: number of the image that every pair shows.
    mesh: the mesh that holds the bank.
    block_rows: rows of a shard scored at a time; 0 chooses by `bank_search.block_rows_for`.
  """
  size, platform = image_features.shape[0], mesh.devices.flat[0].platform
  block_rows = block_rows or bank_search.block_rows_for(size, platform)
  image_BxD = normalize(image_features)
  own_B = jnp.sum(image_BxD * normalize(text_features), axis=1)
  queries = tuple(
    memory_bank.pad_rows(array, mesh.size) for array in (image_BxD, own_B, image_index)
  )

  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(P(), P(BANK_AXES)),
    out_specs=P(BANK_AXES),
    check_vma=False,
  )
  def count_shards(queries, shard):
    image_BxD, own_B, image_index_B = queries
    texts, group_n = shard
    num_blocks, rows = bank_search.blocks(group_n.shape[0], block_rows)

    def visit(count_B, block):
      start, score_BxR = bank_search.score_block((image_BxD,), (texts,), block, rows)
      group_R = jax.lax.dynamic_slice_in_dim(group_n, start, rows)
      other_BxR = group_R[None, :] != image_index_B[:, None]
      return count_B + jnp.sum(other_BxR & (score_BxR > own_B[:, None]), axis=1), None

    count_B, _ = jax.lax.scan(visit, jnp.zeros(own_B.shape, jnp.int32), jnp.arange(num_blocks))
    return jax.lax.psum_scatter(count_B, BANK_AXES, tiled=True)

  return count_shards(queries, ((bank.text, bank.text_inverse_norm), bank.group))[:size]
