"""Local association (section 3.2): which pairs of one batch show the same person?

Two pairs are related when their images are similar and their captions are similar. Relations are
mined without identity labels and carry no gradient.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dgia_jax.method import losses
from dgia_jax.older_names import accepts_older_names

MODALITIES = ("both", "image", "text", "none")


def relations_above(
  image_features: Float[Array | np.ndarray, "B D"],
  text_features: Float[Array | np.ndarray, "B D"],
  thresholds: tuple,
  modality: str = "both",
  row_mask: Bool[Array | np.ndarray, " B"] | None = None,
) -> Bool[Array, "B B"]:
  """`local_relations` with a threshold for the images and another for the captions.

  Args:
    image_features, text_features: unnormalised.
    thresholds: of the images and of the captions; a cosine must be strictly larger.
    modality, row_mask: as in `local_relations`.

  Returns:
    The matrix, True on its diagonal.

  Raises:
    ValueError: for an unknown modality.
  """
  if modality not in MODALITIES:
    raise ValueError(f"modality must be one of {MODALITIES}, not {modality!r}")
  image_features, text_features = jax.lax.stop_gradient((image_features, text_features))
  image_BxB = losses.cosine(image_features, image_features) > thresholds[0]
  text_BxB = losses.cosine(text_features, text_features) > thresholds[1]
  related_BxB = {
    "both": image_BxB & text_BxB,
    "image": image_BxB,
    "text": text_BxB,
    "none": jnp.zeros_like(image_BxB),
  }[modality]
  if row_mask is not None:
    related_BxB &= row_mask[:, None] & row_mask[None, :]
  return related_BxB | jnp.eye(related_BxB.shape[0], dtype=bool)


def local_relations(
  image_features: Float[Array | np.ndarray, "B D"],
  text_features: Float[Array | np.ndarray, "B D"],
  threshold: float = 0.7,
  modality: str = "both",
  row_mask: Bool[Array | np.ndarray, " B"] | None = None,
) -> Bool[Array, "B B"]:
  """The relation matrix A (section 3.2): A_ij is True when i and j are taken to be one person.

  Args:
    image_features, text_features: unnormalised.
    threshold: theta; a cosine must be strictly larger.
    modality: which similarity must exceed it: "both" (the paper), "image" or "text" alone
      (Table 5), or "none", which relates no pair to another.
    row_mask: False for padded rows, which are related only to themselves.

  Returns:
    The matrix, True on its diagonal.

  Raises:
    ValueError: for an unknown modality.
  """
  thresholds = (threshold, threshold)
  return relations_above(image_features, text_features, thresholds, modality, row_mask)


def relation_targets(
  relations_BxB: Bool[Array | np.ndarray, "B B"], relation_label: float
) -> Float[Array, "B B"]:
  """Target distributions q: row softmax of I + lambda (A - I), whose zeros take no probability.

  Args:
    relations_BxB: A, True on the diagonal.
    relation_label: lambda, the label of a mined relation; that of the true pair is 1.
  """
  identity_BxB = jnp.eye(relations_BxB.shape[0], dtype=jnp.float32)
  return losses.target_distribution(identity_BxB + relation_label * (relations_BxB - identity_BxB))


@accepts_older_names(softening="relation_label")
def local_targets(
  image_features: Float[Array | np.ndarray, "B D"],
  text_features: Float[Array | np.ndarray, "B D"],
  threshold: float = 0.7,
  relation_label: float = 0.1,
  modality: str = "both",
) -> Float[Array, "B B"]:
  """Target distributions mined inside the batch: `relation_targets` of `local_relations`.

  Args:
    image_features, text_features: unnormalised; the targets are constants for the gradient.
    threshold: theta; a cosine must be strictly larger.
    relation_label: lambda, the label of a mined relation; that of the true pair is 1.
    modality: as in `local_relations`.

  Raises:
    ValueError: for an unknown modality.
  """
  relations_BxB = local_relations(image_features, text_features, threshold, modality)
  return relation_targets(relations_BxB, relation_label)
