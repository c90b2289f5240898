"""The confidence gate on anchor updates (`config.bank.gated`).

Not in the paper. A pair whose image and caption disagree is likely to be noisy, so its anchors in
the memory bank should move less.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgia_jax.method.losses import normalize


def gated_update_rate(
  image_features: Float[Array | np.ndarray, "B D"],
  text_features: Float[Array | np.ndarray, "B D"],
  update_rate: float,
  gated: bool,
) -> Float[Array, " B"]:
  """The weight of each pair's new feature in its bank row.

  With the gate, the rate is scaled by the cosine of the pair's two features, clipped to [0, 1].

  Args:
    image_features, text_features: unnormalised; constants for the gradient.
    update_rate: alpha, the weight of the new feature.
    gated: whether the gate is on.
  """
  image_BxD, text_BxD = jax.lax.stop_gradient((image_features, text_features))
  if not gated:
    return jnp.full(image_BxD.shape[0], update_rate, jnp.float32)
  cosine_B = jnp.sum(normalize(image_BxD) * normalize(text_BxD), axis=-1)
  return update_rate * jnp.clip(cosine_B, 0.0, 1.0)
