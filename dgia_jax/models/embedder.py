"""Embedding images and texts in batches: the one place where evaluation and search run the towers.

Both towers are compiled for batches of one static shape, split over the mesh. The host prepares
the next batch while the devices compute.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, UInt8

from dgia_jax import sharding

Params = Mapping[str, Any]
Features = Float[np.ndarray, "B D"]
_BATCHES_IN_FLIGHT = 2


class Embedder:
  """Both towers of a dual encoder, compiled on first use and once per batch size."""

  def __init__(
    self,
    graphdef: nnx.GraphDef,
    mesh: jax.sharding.Mesh,
    params_sharding: Any,
    postprocess: Callable[[jax.Array], jax.Array] = lambda features: features,
  ):
    """Binds a model to a mesh.

    Args:
      graphdef: the structure of the `dual_encoder.DualEncoder`.
      mesh: the mesh that batches are split over.
      params_sharding: layout of the parameters, a tree of shardings or one for all.
      postprocess: applied to every batch of features on the devices.
    """
    self._mesh = mesh

    def compiled(encode: Callable[[Any, jax.Array], jax.Array]) -> Callable:
      return jax.jit(
        lambda params, batch: postprocess(encode(nnx.merge(graphdef, params), batch)),
        in_shardings=(params_sharding, sharding.batch(mesh)),
        out_shardings=sharding.replicated(mesh),
      )

    self._encode_images = compiled(
      lambda model, images: model.encode_image(model.normalize_pixels(images))
    )
    self._encode_texts = compiled(lambda model, tokens: model.encode_text(tokens))

  def whole_batch(self, batch_size: int) -> int:
    """`batch_size` rounded up to a multiple of the batch shards of the mesh."""
    shards = sharding.batch_shards(self._mesh)
    return -(-batch_size // shards) * shards

  def embed_images(
    self, params: Params, batches: Iterable[UInt8[np.ndarray, "b H W 3"]], batch_size: int
  ) -> Iterator[Features]:
    """Yields the features of every batch, padding included.

    Args:
      params: parameters in the layout given at construction.
      batches: pixels; of each global batch the rows that `sharding.batch_rows` names.
      batch_size: B, rows of a global batch, a result of `whole_batch`.
    """
    return self._embed(self._encode_images, params, batches, batch_size)

  def embed_texts(
    self, params: Params, batches: Iterable[Int[np.ndarray, "b L"]], batch_size: int
  ) -> Iterator[Features]:
    """As `embed_images`, for token ids."""
    return self._embed(self._encode_texts, params, batches, batch_size)

  def _embed(
    self, encode: Callable, params: Params, batches: Iterable[np.ndarray], batch_size: int
  ) -> Iterator[np.ndarray]:
    in_flight = []
    for batch in batches:
      placed = sharding.global_batch(self._mesh, {"batch": batch}, batch_size)["batch"]
      in_flight.append(encode(params, placed))
      if len(in_flight) == _BATCHES_IN_FLIGHT:
        yield jax.device_get(in_flight.pop(0))
    yield from map(jax.device_get, in_flight)


class PaddedBatches(Iterable[np.ndarray]):
  """Stacks a stream of rows into batches of one size; the last row fills up the last batch.

  `num_rows` counts the rows without padding; it is complete when the iteration has ended.
  """

  def __init__(self, rows: Iterable[np.ndarray], batch_size: int):
    self.num_rows = 0
    self._rows, self._batch_size = rows, batch_size

  def __iter__(self) -> Iterator[np.ndarray]:
    batch = []
    for row in self._rows:
      batch.append(row)
      self.num_rows += 1
      if len(batch) == self._batch_size:
        yield np.stack(batch)
        batch = []
    if batch:
      yield np.stack(batch + [batch[-1]] * (self._batch_size - len(batch)))
