"""Accelerators that are not attached to this machine: devices to compile for, and their memory.

A name is KIND:SHAPE: a TPU slice as Google Cloud writes it, such as v5e:16x16; GPUs of one host or
of several, such as h200:8 or h100:2x8; or cpu:8 for eight devices of this machine. TPUs need the
package libtpu and GPUs the CUDA plugin of JAX. Both compile without the hardware.
"""

import math
import os
import re

import jax

from dgia_jax.dry_run import gpu_topology
from dgia_jax.errors import UserError

GIB = 2**30
# cloud.google.com/tpu/docs, "HBM capacity per chip".
HBM_BYTES = {"v4": 32 * GIB, "v5e": 16 * GIB, "v5p": 95 * GIB, "v6e": 32 * GIB} | {
  name: gpu.memory_bytes for name, gpu in gpu_topology.GPUS.items()
}
# Side of a matrix unit, which multiplies tiles of this size: cloud.google.com/tpu/docs.
MATRIX_UNIT_SIDE = {"v4": 128, "v5e": 128, "v5p": 128, "v6e": 256}
# Two cores of these chips act as one device, as on a Cloud TPU VM.
_MEGACORE = ("v4", "v5p")


def devices_of(name: str) -> list[jax.Device]:
  """The devices of a topology, one per chip.

  Args:
    name: such as "v5e:16x16", "v4:2x2x4", "h200:8", or "cpu:8".

  Raises:
    UserError: the name is unknown, the compiler's package is not installed, or there are too few
      CPU devices.
  """
  kind, shape = parse(name)
  if kind == "cpu":
    return _cpu_devices(math.prod(shape))
  is_gpu = kind in gpu_topology.GPUS
  try:
    return gpu_topology.devices_of(kind, shape) if is_gpu else _tpu_devices(name, kind, shape)
  except (RuntimeError, ImportError, ValueError) as error:
    reason = " ".join(str(error).split())[:200]
    package, extra = ("the CUDA plugin", "cuda13") if is_gpu else ("libtpu", "tpu")
    raise UserError(
      f"--topology={name}: cannot be described ({reason}); check the shape, and install {package}:"
      f' pip install "jax[{extra}]"'
    ) from error


def _tpu_devices(name: str, generation: str, shape: tuple[int, ...]) -> list[jax.Device]:
  """The chips of a TPU slice."""
  from jax.experimental import topologies

  # No chip is used, so other processes may use libtpu at the same time.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  options = {"chip_config_name": "megacore"} if generation in _MEGACORE else {}
  if any(side % 2 for side in shape[:2]):
    options["chips_per_host_bounds"] = [1, 1, 1]
  return list(topologies.get_topology_desc(name, platform="tpu", **options).devices)


def _cpu_devices(count: int) -> list[jax.Device]:
  """The first `count` CPU devices; creates them if JAX has not started its CPU backend yet."""
  try:
    jax.config.update("jax_num_cpu_devices", count)
  except RuntimeError:  # JAX has started: the number of devices can no longer change
    pass
  devices = jax.devices("cpu")
  if len(devices) < count:
    raise UserError(
      f"--topology=cpu:{count}: this process has {len(devices)} CPU device(s); set"
      f" XLA_FLAGS=--xla_force_host_platform_device_count={count}"
    )
  return devices[:count]


def parse(name: str | None) -> tuple[str, tuple[int, ...]]:
  """Splits a name: "v5e:16x16" -> ("v5e", (16, 16)).

  Raises:
    UserError: for an unknown kind or a malformed shape.
  """
  match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name or "")
  known = ("cpu", *HBM_BYTES)
  if not match or match[1] not in known or not math.prod(map(int, match[2].split("x"))):
    raise UserError(
      f"--topology={name}: give KIND:SHAPE with one of {', '.join(known)}, such as v5e:16x16 or"
      " h200:8"
    )
  return match[1], tuple(map(int, match[2].split("x")))


def memory_of(name: str) -> int | None:
  """Bytes of memory per device; None for a CPU."""
  return HBM_BYTES.get(parse(name)[0])
