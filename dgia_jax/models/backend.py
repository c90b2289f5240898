"""How each kind of device computes the transformer blocks.

The choice affects speed and memory. Numbers change by rounding only.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dgia_jax.errors import UserError

_CUDNN_CAPABILITY = 8.0  # Ampere, the oldest GPUs on which cuDNN has a fused attention kernel


@typing.runtime_checkable
class Device(typing.Protocol):
  """The part of `jax.Device` that `choose` reads; a compile-only topology has it too."""

  platform: str


@dataclasses.dataclass(frozen=True)
class Backend:
  """Settings of a tower's blocks. The defaults suit CPUs and TPUs.

  Attributes:
    attention: "written_out", as two matrix products and a softmax, or "cudnn", NVIDIA's fused
      kernel, which never writes the scores to memory and needs bfloat16.
    row_major: keep activations in memory in the order of their axes. Otherwise, the GPU compiler
      derives the layout of the whole residual stream from the gradient of the one pooled token,
      and transposes every operand of the backward pass (an eighth of the step).
    unroll: compile the blocks one by one. A loop stacks the activations of all blocks, which a GPU
      would copy in and out.
    remat: recompute block activations in the backward pass to save memory.
    full_last_block: compute the last block for all tokens, of which one is read; for comparison.
    frozen_image_blocks, frozen_text_blocks: first blocks of a tower that have no backward pass,
      because nothing is trained up to there.
  """

  attention: str = "written_out"
  row_major: bool = False
  unroll: bool = False
  remat: bool = False
  full_last_block: bool = False
  frozen_image_blocks: int = 0
  frozen_text_blocks: int = 0


DEFAULT = Backend()


def precision_of(dtype: DTypeLike) -> jax.lax.Precision | None:
  """The precision of products of this dtype.

  Accelerators round float32 to TF32 or bfloat16 in products unless they are asked not to.
  """
  return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def matmul(
  x: Float[Array | np.ndarray, "*rows U"], kernel: Float[Array | np.ndarray, "U D"]
) -> Float[Array, "*rows D"]:
  """The product of every row with a kernel, in the precision of the rows' dtype."""
  return jnp.matmul(x, kernel, precision=precision_of(x.dtype))


def choose(
  device: Device, dtype: DTypeLike, *, attention: str = "auto", remat: bool = False
) -> Backend:
  """Returns the settings that suit a device.

  Args:
    device: computes the blocks.
    dtype: of the computation.
    attention: as in `Backend`, or "auto": cuDNN's kernel wherever it works.
    remat: as in `Backend`.

  Raises:
    UserError: cuDNN's attention is requested where it does not work.
  """
  on_gpu = device.platform in ("gpu", "cuda", "rocm")
  has_cudnn = on_gpu and _has_cudnn(device, dtype)
  if attention == "cudnn" and not has_cudnn:
    raise UserError(
      f"config.model.attention=cudnn cannot compute {jnp.dtype(dtype).name} on {device}: it needs"
      " config.model.dtype=bfloat16 and an NVIDIA GPU from Ampere on; use auto"
    )
  if attention == "auto":
    attention = "cudnn" if has_cudnn else "written_out"
  return Backend(attention, row_major=on_gpu, unroll=on_gpu, remat=remat)


def _has_cudnn(gpu: Device, dtype: DTypeLike) -> bool:
  """Whether cuDNN's attention kernel works on this GPU with this dtype."""
  is_nvidia = "rocm" not in getattr(gpu.client, "platform_version", "")
  try:
    capability = float(getattr(gpu, "compute_capability", 0))
  except ValueError:  # AMD's capabilities are names, such as "gfx942"
    return False
  return is_nvidia and capability >= _CUDNN_CAPABILITY and jnp.dtype(dtype) == jnp.bfloat16
