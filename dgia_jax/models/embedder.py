"""Embedding images and texts in batches: the one place where evaluation and search run the towers.

Both towers are compiled for batches of few static shapes, split over the mesh. The host prepares
the next batch while the devices compute.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, UInt8

from dgia_jax import sharding
from dgia_jax.models import caption_batches

Params = Mapping[str, Any]
Features = Float[np.ndarray, "B D"]
_BATCHES_IN_FLIGHT = 2


class Embedder:
  """Both towers of a dual encoder, compiled on first use and once per shape of a batch."""

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
    self._graphdef, self._mesh = graphdef, mesh

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

  def whole_batch(self, batch_size: int, num_inputs: int | None = None) -> int:
    """`batch_size` rounded up to a multiple of the batch shards of the mesh.

    If there are fewer inputs than that, their number rounded up to a power of two first: a query
    should not be computed as often as a batch has rows, nor every number of queries be compiled.
    """
    if num_inputs is not None:
      batch_size = min(batch_size, 1 << max(num_inputs - 1, 0).bit_length())
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
    self,
    params: Params,
    tokens_NxL: Int[np.ndarray, "N L"],
    batch_size: int,
    on_batch: Callable[[int], Any] = lambda count: None,
  ) -> Float[np.ndarray, "N D"]:
    """The features of encoded texts, in their order.

    Texts are sorted by length and cut behind their end tokens, so shapes and order of the programs
    depend on all texts. Features are those of uncut texts up to rounding.

    Args:
      params: parameters in the layout given at construction.
      tokens_NxL: all texts, at least one, the same in every process.
      batch_size: B, rows of a global batch, a result of `whole_batch`.
      on_batch: called after each batch with its number of texts.
    """
    attends_to_padding = nnx.merge(self._graphdef, params).family.is_siglip
    batches = list(
      caption_batches.batches(tokens_NxL, batch_size, by_length=not attends_to_padding)
    )
    rows = sharding.batch_rows(self._mesh, batch_size)
    tokens = (batch.tokens_BxT[rows] for batch in batches)
    features = self._embed(self._encode_texts, params, tokens, batch_size)
    features_of_batches = []
    for batch, features_BxD in zip(batches, features, strict=True):
      features_of_batches.append(features_BxD[: len(batch.numbers_b)])
      on_batch(len(batch.numbers_b))
    sorted_NxD = np.concatenate(features_of_batches)
    return sorted_NxD[np.argsort(np.concatenate([batch.numbers_b for batch in batches]))]

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
