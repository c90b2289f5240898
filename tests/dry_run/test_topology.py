"""Names of topologies, and the compilers' own devices where they are installed."""

import importlib.util
import os
import types

import jax
import jax.numpy as jnp
import pytest

from dgia_jax.dry_run import topology
from dgia_jax.errors import UserError
from dgia_jax.models import backend


def test_names():
  assert topology.parse("v5e:16x16") == ("v5e", (16, 16))
  assert topology.devices_of("cpu:8") == jax.devices()[:8]
  assert topology.parse("h200:2x8") == ("h200", (2, 8))
  assert topology.memory_of("v5e:2x2") == 16 * 2**30 and topology.memory_of("cpu:8") is None
  assert topology.memory_of("a100:8") < 80 * 2**30
  for name in ("v5e", "v9:2x2", "v5e:", "v5e:2y2", "v5e:0x2", "", None):
    with pytest.raises(UserError, match="KIND:SHAPE"):
      topology.parse(name)


@pytest.mark.parametrize("name, package", [("v5e:2x2", "libtpu"), ("h100:8", "the CUDA plugin")])
def test_without_the_compilers_package_one_line(monkeypatch, name, package):
  from jax.experimental import topologies

  def missing(*_, **__):
    raise RuntimeError("not found")

  monkeypatch.setattr(topologies, "get_topology_desc", missing)
  with pytest.raises(UserError, match=f"{name}.*not found.*install {package}"):
    topology.devices_of(name)


def test_gpus_of_several_hosts(monkeypatch):
  from jax.experimental import topologies

  described = {}
  described_by = lambda name, **options: (
    described.update(options) or types.SimpleNamespace(devices=[])
  )
  monkeypatch.setattr(topologies, "get_topology_desc", described_by)
  monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_onednn=false")
  topology.devices_of("h200:2x8")
  assert described["topology"] == "1x2x8" and '"NVIDIA H200"' in described["target_config"]
  topology.devices_of("a100:4")
  assert described["topology"] == "1x1x4" and "major: 8 minor: 0" in described["target_config"]
  assert os.environ["XLA_FLAGS"].split() == [
    "--xla_cpu_use_onednn=false", "--xla_gpu_enable_triton_gemm=false"
  ]  # fmt: skip
  with pytest.raises(UserError, match="HOSTSxGPUS"):
    topology.devices_of("h200:1x2x8")


@pytest.mark.slow
@pytest.mark.parametrize(
  "name, chips", [("v5e:1x1", 1), ("v5e:16x16", 256), ("v4:2x2x4", 16), ("v5p:4x4x8", 128)]
)
def test_devices_are_chips(name, chips):
  if not importlib.util.find_spec("libtpu"):
    pytest.skip("needs libtpu")
  devices = topology.devices_of(name)
  assert len(devices) == chips and devices[0].platform == "tpu"


@pytest.mark.slow
def test_gpus_that_are_not_attached():
  if not importlib.util.find_spec("jax_cuda13_plugin"):
    pytest.skip("needs the CUDA plugin of JAX")
  devices = topology.devices_of("h200:2x8")
  assert len(devices) == 16 and {device.device_kind for device in devices} == {"NVIDIA H200"}
  assert backend.choose(devices[0], jnp.bfloat16).attention == "cudnn"
