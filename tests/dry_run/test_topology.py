"""Names of topologies, and libtpu's own devices where it is installed."""

import importlib.util

import jax
import pytest

from dgia_jax.dry_run import topology
from dgia_jax.errors import UserError


def test_names():
  assert topology.parse("v5e:16x16") == ("v5e", (16, 16))
  assert topology.devices_of("cpu:8") == jax.devices()[:8]
  assert topology.memory_of("v5e:2x2") == 16 * 2**30 and topology.memory_of("cpu:8") is None
  for name in ("v5e", "v9:2x2", "v5e:", "v5e:2y2", "v5e:0x2", "", None):
    with pytest.raises(UserError, match="GENERATION:SHAPE"):
      topology.parse(name)


def test_without_libtpu_one_line(monkeypatch):
  from jax.experimental import topologies

  def missing(*_, **__):
    raise RuntimeError("no libtpu")

  monkeypatch.setattr(topologies, "get_topology_desc", missing)
  with pytest.raises(UserError, match="v5e:2x2.*no libtpu.*install libtpu"):
    topology.devices_of("v5e:2x2")


@pytest.mark.slow
@pytest.mark.parametrize(
  "name, chips", [("v5e:1x1", 1), ("v5e:16x16", 256), ("v4:2x2x4", 16), ("v5p:4x4x8", 128)]
)
def test_devices_are_chips(name, chips):
  if not importlib.util.find_spec("libtpu"):
    pytest.skip("needs libtpu")
  devices = topology.devices_of(name)
  assert len(devices) == chips and devices[0].platform == "tpu"
