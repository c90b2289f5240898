"""The benchmark's workload: a config's training step on made-up arrays, equal for all.

Random data suffice, because speed does not depend on image content. Only the number of mined
relations could matter, so the banks hold neighbours of every pair of the batch. This module
does not import JAX, because the PyTorch process imports it too.
"""

import dataclasses
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import Float

from dgia_jax.errors import UserError

# The PyTorch implementation supports the released settings only.
_RELEASED = {
  "gradient_accumulation": 1,
  "loss.itc_reduction": "mean",
  "local_association.modality": "both",
  "global_association.anchor": "image",
  "global_association.loss_over": "all",
  "global_association.exclude": "top1",
  "global_association.exclude_same_image": False,
  "bank.gated": False,
  "optimizer.second_moment": "float32",
}
_WORDS = (20, 60)  # range of tokens per caption, without start and end
TOLERANCE = 1e-3  # largest relative difference between implementations
PRODUCT_SIDE = 2048  # of the square matrices whose product shows the speed of the machine


@dataclasses.dataclass(frozen=True)
class Workload:
  """A training step to be timed; can be pickled and sent to another process.

  Attributes:
    fields: a resolved config as a plain dict.
    num_pairs: N, rows of the banks.
    association_batch: batch size of the association that is timed alone.
  """

  fields: dict
  num_pairs: int
  association_batch: int

  @property
  def config(self) -> ml_collections.ConfigDict:
    """A new copy of the config."""
    return ml_collections.ConfigDict(self.fields)

  @property
  def epoch(self) -> int:
    """The first epoch, from 1, in which all losses run."""
    config = self.config
    return max(config.local_association.start_epoch, config.global_association.start_epoch)

  @property
  def mask_id(self) -> int:
    """Token id of the mask: the third from the end, as in our tokenizer."""
    return self.config.tokenizer.vocab_size - 3

  @property
  def steps_per_epoch(self) -> int:
    """Batches per epoch."""
    return -(-self.num_pairs // self.config.batch_size)


def check(workload: Workload) -> None:
  """Raises UserError for a config that not every implementation can compute."""
  flat = ml_collections.ConfigDict(workload.fields)
  for field, released in _RELEASED.items():
    value = flat
    for name in field.split("."):
      value = value[name]
    if value != released:
      raise UserError(f"config.{field}={value!r}: the benchmark compares {released!r} only; set it")
  sizes = {"config.batch_size": flat.batch_size, "association_batch": workload.association_batch}
  for name, size in sizes.items():
    if size > workload.num_pairs:
      raise UserError(f"{name}={size} is more than --num_pairs={workload.num_pairs}; lower it")


def batch(workload: Workload, size: int, seed: int = 0) -> dict[str, np.ndarray]:
  """One training batch of `size` pairs as the input pipeline would yield it.

  Returns:
    {"image": (B, H, W, 3) uint8, "tokens": (B, L) int32, "index": (B,) int32, "image_index": (B,)
    int32, "mask": (B,) bool}
  """
  random, config = np.random.default_rng(seed), workload.config
  index = random.choice(workload.num_pairs, size, replace=False).astype(np.int32)
  return {
    "image": random.integers(0, 256, (size, *config.dataset.image_size, 3), np.uint8),
    "tokens": tokens(workload, size, random),
    "index": index,
    "image_index": index // 2,
    "mask": np.ones(size, bool),
  }


def tokens(workload: Workload, size: int, random: np.random.Generator) -> np.ndarray:
  """Captions of random words between start and end token: (size, L) int32, padded with 0."""
  length, vocabulary = (
    workload.config.tokenizer.context_length,
    workload.config.tokenizer.vocab_size,
  )
  rows = np.zeros((size, length), np.int32)
  for row in rows:
    words = min(int(random.integers(*_WORDS)), length - 2)
    row[0], row[words + 1] = vocabulary - 2, vocabulary - 1
    row[1 : words + 1] = random.integers(1, workload.mask_id, words)
  return rows


def features(size: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Unnormalised image and text features (B, D); some pairs of the batch are similar."""
  random = np.random.default_rng(seed)
  person = random.integers(0, max(size // 2, 1), size)
  noisy = lambda: _around(random.normal(size=(size, dim))[person], random, 0.3)
  return noisy(), noisy()


def bank(
  features_BxD: Float[Any, "B D"], num_pairs: int, seed: int = 0
) -> Float[np.ndarray, "N D"]:
  """Bank rows around the batch's features, at cosines from about 0.5 to 0.95: (N, D) float32.

  The features may also be a tensor of PyTorch in main memory.
  """
  random = np.random.default_rng(seed)
  chosen = np.arange(num_pairs) % len(features_BxD)
  spread = random.uniform(0.3, 1.7, (num_pairs, 1)).astype(np.float32)
  return _around(np.asarray(features_BxD, np.float32)[chosen], random, spread)


def _around(rows, random, spread):
  """Rows with noise of `spread` times their length."""
  rows = np.asarray(rows, np.float32)
  noise = random.standard_normal(rows.shape, np.float32) / np.float32(rows.shape[1] ** 0.5)
  return rows + spread * np.linalg.norm(rows, axis=1, keepdims=True) * noise
