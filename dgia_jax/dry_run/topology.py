"""TPU slices that are not attached to this machine: devices to compile for, and their memory.

A name is GENERATION:SHAPE as Google Cloud writes it, such as v5e:16x16, or cpu:8 for eight devices
of this machine. TPUs need the package libtpu, which compiles without a TPU.
"""

import math
import os
import re

import jax

from dgia_jax.errors import UserError

GIB = 2**30
# cloud.google.com/tpu/docs, "HBM capacity per chip".
HBM_BYTES = {"v4": 32 * GIB, "v5e": 16 * GIB, "v5p": 95 * GIB, "v6e": 32 * GIB}
# Side of a matrix unit, which multiplies tiles of this size: cloud.google.com/tpu/docs.
MATRIX_UNIT_SIDE = {"v4": 128, "v5e": 128, "v5p": 128, "v6e": 256}
# Two cores of these chips act as one device, as on a Cloud TPU VM.
_MEGACORE = ("v4", "v5p")


def devices_of(name: str) -> list[jax.Device]:
  """The devices of a topology, one per chip.

  Args:
    name: such as "v5e:16x16", "v4:2x2x4", or "cpu:8".

  Raises:
    UserError: the name is unknown, libtpu is not installed, or there are too few CPU devices.
  """
  generation, shape = parse(name)
  if generation == "cpu":
    return _cpu_devices(math.prod(shape))
  from jax.experimental import topologies

  # No chip is used, so other processes may use libtpu at the same time.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  options = {"chip_config_name": "megacore"} if generation in _MEGACORE else {}
  if any(side % 2 for side in shape[:2]):
    options["chips_per_host_bounds"] = [1, 1, 1]
  try:
    return list(topologies.get_topology_desc(name, platform="tpu", **options).devices)
  except (RuntimeError, ImportError, ValueError) as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError(
      f"--topology={name}: cannot be described ({reason}); check the shape, and install libtpu:"
      ' pip install "jax[tpu]"'
    ) from error


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
    UserError: for an unknown generation or a malformed shape.
  """
  match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name or "")
  known = ("cpu", *HBM_BYTES)
  if not match or match[1] not in known or not math.prod(map(int, match[2].split("x"))):
    raise UserError(
      f"--topology={name}: give GENERATION:SHAPE with one of {', '.join(known)}, such as v5e:16x16"
    )
  return match[1], tuple(map(int, match[2].split("x")))


def memory_of(name: str) -> int | None:
  """Bytes of memory per chip; None for a CPU."""
  return HBM_BYTES.get(parse(name)[0])
