"""How a platform computes the towers: changes speed and memory, and numbers by rounding only."""

import dataclasses

import jax.numpy as jnp

from dgia_jax.errors import UserError

_CUDNN_CAPABILITY = 8.0  # of the oldest GPUs whose cuDNN has this attention: Ampere


@dataclasses.dataclass(frozen=True)
class Execution:
  """Settings of the blocks of a tower; the defaults suit CPUs and TPUs.

  Attributes:
    attention: "written_out", or "cudnn": the fused kernel of NVIDIA's library, which never writes
      scores to memory; needs bfloat16.
    row_major: activations lie in memory as they are indexed. Left alone, the GPU compiler lets the
      gradient of the one pooled token choose the order of the whole residual stream, and turns
      every operand of the backward pass around (an eighth of the step).
    unroll: blocks are compiled one by one instead of as a loop, whose stacked activations a GPU
      would copy in and out.
    remat: compute block activations again in the backward pass, to save memory.
  """

  attention: str = "written_out"
  row_major: bool = False
  unroll: bool = False
  remat: bool = False


PLAIN = Execution()


def on(device, dtype, *, attention="auto", remat=False):
  """What suits a device.

  Args:
    device: a `jax.Device`, or the description of one.
    dtype: of the computation.
    attention: as in `Execution`, or "auto": cuDNN's where it can work.
    remat: see `Execution`.

  Raises:
    UserError: cuDNN's attention is asked for where it cannot work.
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
  return Execution(attention, row_major=on_gpu, unroll=on_gpu, remat=remat)


def _has_cudnn(device, dtype):
  """Whether cuDNN's attention works on a GPU, for a dtype."""
  is_nvidia = "cuda" in getattr(device.client, "platform_version", "cuda")
  try:
    capability = float(getattr(device, "compute_capability", 0))
  except ValueError:  # AMD's are names
    return False
  return is_nvidia and capability >= _CUDNN_CAPABILITY and jnp.dtype(dtype) == jnp.bfloat16
