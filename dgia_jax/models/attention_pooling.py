"""SigLIP's pooling of all patches to one feature."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dgia_jax.models import transformer
from dgia_jax.models.backend import Backend
from dgia_jax.models.families import Family


class AttentionPooling(nnx.Module):
  """A learned query attends to all tokens; a residual MLP follows.

  Args:
    width: U.
    heads: attention heads.
    mlp_width: inner width of the MLP; 0 means 4 U.
    family: of the model.
    dtype: of the computation; weights are float32.
    backend: as in `transformer.Attention`.
    rngs: draws the initial weights.
  """

  def __init__(
    self,
    width: int,
    heads: int,
    mlp_width: int,
    *,
    family: Family,
    dtype: DTypeLike,
    backend: Backend,
    rngs: nnx.Rngs,
  ):
    std = width**-0.5
    self.probe = nnx.Param(nnx.initializers.normal(std)(rngs.params(), (width,), jnp.float32))
    self.attention = transformer.Attention(
      width, heads, causal=False, out_std=std, dtype=dtype, backend=backend, rngs=rngs
    )
    self.norm = transformer.layer_norm(width, family=family, dtype=dtype, rngs=rngs)
    self.mlp = transformer.Mlp(width, mlp_width, family=family, out_std=std, dtype=dtype, rngs=rngs)

  def __call__(self, x_BxTxU: Float[Array | np.ndarray, "B T U"]) -> Float[Array, "B U"]:
    """Returns the feature, in float32."""
    batch, _, width = x_BxTxU.shape
    probe_BxU = jnp.broadcast_to(self.probe[...].astype(x_BxTxU.dtype), (batch, width))
    pooled_BxU = self.attention.of_queries(probe_BxU[:, None], x_BxTxU)[:, 0]
    return (pooled_BxU + self.mlp(self.norm(pooled_BxU))).astype(jnp.float32)
