"""Exchange of captions among pairs that are mined to show one person (`config.caption_exchange`).

Not in the paper. If two images show one person, the caption of each describes the other, too. So an
image may be trained with the caption of a neighbour that global association (section 3.3) mined for
it when it was last seen. Then more captions than its own are tied to an image by all four losses.
The bank's text row of a pair holds the feature of the caption that it was last trained with. So
mining must not judge by captions alone: `config.check` refuses text anchors, the text match, gates
and local relations by text.

The captions and the mined neighbours of all pairs are kept beside the memory bank, and laid out as
its rows are.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from dgia_jax.method import memory_bank
from dgia_jax.method.global_association import Neighbours
from dgia_jax.method.mining import Batch


@flax.struct.dataclass
class PairMemory:
  """What is remembered of every training pair: one row per pair, padded as the bank is."""

  tokens: memory_bank.Leaf  # (N, L) int32, its own caption; zeros where never seen
  neighbours: memory_bank.Leaf  # (N, K) int32, bank rows; -1 in empty slots and where never seen


def create(num_rows: int, context_length: int, k: int) -> PairMemory:
  """An empty memory. Call it inside jit with the layout as out_shardings."""
  return PairMemory(
    tokens=jnp.zeros((num_rows, context_length), jnp.int32),
    neighbours=jnp.full((num_rows, k), -1, jnp.int32),
  )


def exchanged_tokens(
  memory: PairMemory, batch: Batch, key: Array, prob: float, *, mesh: Mesh
) -> Int[Array, "B L"]:
  """The captions that the images of a batch are trained with.

  Args:
    memory: of all pairs.
    batch: see `mining.Batch`.
    key: random key of the step.
    prob: probability that a pair takes the caption of one of its neighbours, if it has any.
    mesh: the mesh that holds the memory.
  """
  neighbours_BxK = memory_bank.gather(memory.neighbours, batch["index"], mesh=mesh)
  row_B = jnp.where(batch["mask"], draw_rows(key, neighbours_BxK, prob), -1)
  tokens_BxL = memory_bank.gather(memory.tokens, row_B, mesh=mesh)
  return jnp.where(row_B[:, None] >= 0, tokens_BxL, batch["tokens"])


def draw_rows(
  key: Array, neighbours_BxK: Int[Array | np.ndarray, "B K"], prob: float | Float[Array, ""]
) -> Int[Array, " B"]:
  """One of each pair's neighbours with probability `prob`, all equally likely; else -1.

  Args:
    key: random key.
    neighbours_BxK: rows, -1 in empty slots.
    prob: 1 takes a neighbour whenever there is one.
  """

  def draw(key, neighbours_K):
    exchange_key, choice_key = jax.random.split(key)
    logits_K = jnp.where(neighbours_K >= 0, 0.0, -jnp.inf)
    chosen = neighbours_K[jax.random.categorical(choice_key, logits_K)]  # -1 if all are empty
    return jnp.where(jax.random.bernoulli(exchange_key, prob), chosen, -1)

  return jax.vmap(draw)(jax.random.split(key, len(neighbours_BxK)), jnp.asarray(neighbours_BxK))


def remember(
  memory: PairMemory,
  batch: Batch,
  neighbours: Neighbours,
  *,
  mesh: Mesh,
  row_mask: Bool[Array | np.ndarray, " B"],
) -> PairMemory:
  """Replaces the rows of a batch by its captions and by the neighbours mined for it.

  Args:
    memory: donate it to have it updated in place.
    batch: see `mining.Batch`; with the pairs' own captions.
    neighbours: of the batch; slots that are not valid become empty.
    mesh: the mesh that holds the memory.
    row_mask: False for padded rows, which write nothing.
  """
  index_B = jnp.where(row_mask, batch["index"], -1)
  rows_BxK = jnp.where(neighbours.valid, neighbours.rows, -1)
  values = PairMemory(batch["tokens"].astype(jnp.int32), rows_BxK.astype(jnp.int32))
  return memory_bank.write(memory, index_B, values, mesh=mesh)
