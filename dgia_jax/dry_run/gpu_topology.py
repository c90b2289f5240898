"""NVIDIA GPUs that are not attached to this machine: what the compiler has to know about them.

Needs the CUDA plugin of JAX (`pip install "dgia_jax[gpu]"`), which compiles without a GPU. Nothing
can be timed then, so products go to cuBLAS: the compiler chooses its own kernels by timing them.
"""

import dataclasses
import os
from collections.abc import Sequence

import jax

GIB = 2**30
_KIB, _MIB = 2**10, 2**20
_NO_TIMING = "--xla_gpu_enable_triton_gemm=false"
# What does not depend on the model, from A100 to H200.
_COMMON = """
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation" driver_version: "13.0.0" runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0" dnn_version: "9.8.0"
"""


@dataclasses.dataclass(frozen=True)
class Gpu:
  """A GPU, from NVIDIA's data sheet and its tables of compute capabilities.

  Attributes:
    kind: as `jax.Device.device_kind` has it.
    capability: compute capability, major and minor.
    memory_bytes: as the driver reports it; slightly less than is printed on the package.
    bandwidth: of the memory, bytes per second.
    multiprocessors: that are switched on.
    fp32_units: per multiprocessor.
    shared_kib: shared memory per multiprocessor; a block gets 1 KiB less.
    l2_mib: second-level cache.
    clock_ghz: highest.
  """

  kind: str
  capability: tuple[int, int]
  memory_bytes: int
  bandwidth: float
  multiprocessors: int
  fp32_units: int
  shared_kib: int
  l2_mib: int
  clock_ghz: float


_A100 = Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 79 * GIB, 2.039e12, 108, 64, 164, 40, 1.41)
_H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 79 * GIB, 3.35e12, 132, 128, 228, 50, 1.98)
GPUS = {
  "a100": _A100,
  "h100": _H100,
  "h200": dataclasses.replace(_H100, kind="NVIDIA H200", memory_bytes=140 * GIB, bandwidth=4.8e12),
}


def describe(gpu: Gpu) -> str:
  """The description that XLA's GPU compiler reads (a `GpuTargetConfigProto` as text)."""
  major, minor = gpu.capability
  return f"""
gpu_device_info {{
  {_COMMON}
  name: "{gpu.kind}" cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {gpu.multiprocessors} fpus_per_core: {gpu.fp32_units} clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {gpu.memory_bytes} memory_bandwidth: {int(gpu.bandwidth)}
  l2_cache_size: {gpu.l2_mib * _MIB} shared_memory_per_core: {gpu.shared_kib * _KIB}
  shared_memory_per_block_optin: {(gpu.shared_kib - 1) * _KIB}
}}
platform_name: "CUDA" device_description_str: "{gpu.kind}"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
"""


def devices_of(name: str, shape: Sequence[int]) -> list[jax.Device]:
  """The GPUs of one or several hosts.

  Args:
    name: one of `GPUS`.
    shape: (GPUs,) of one host, or (hosts, GPUs of each).

  Raises:
    RuntimeError, ImportError, ValueError: as JAX does, above all without the CUDA plugin.
  """
  # The plugin checks the versions of a driver that need not be there.
  os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
  if "xla_gpu_enable_triton_gemm" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_NO_TIMING}".strip()
  from jax.experimental import topologies

  if len(shape) > 2:
    raise ValueError("give the number of GPUs, or HOSTSxGPUS")
  hosts, gpus = (1, *shape)[-2:]
  description = topologies.get_topology_desc(
    name, platform="cuda", target_config=describe(GPUS[name]), topology=f"1x{hosts}x{gpus}"
  )
  return list(description.devices)
