"""The settings of the blocks that each kind of device gets."""

import types

import jax
import jax.numpy as jnp
import pytest

from dgia_jax.errors import UserError
from dgia_jax.models import backend


def device(platform, **attributes):
  version = {"gpu": "PJRT C API\ncuda 13000"}.get(platform, platform)
  return types.SimpleNamespace(
    platform=platform, client=types.SimpleNamespace(platform_version=version), **attributes
  )


def test_cpus_and_tpus_keep_the_defaults():
  for plain_device in (jax.devices()[0], device("cpu"), device("tpu")):
    assert backend.choose(plain_device, jnp.bfloat16) == backend.DEFAULT
  assert backend.choose(device("tpu"), jnp.bfloat16, remat=True) == backend.Backend(remat=True)


@pytest.mark.parametrize(
  "capability, dtype, expected",
  [
    ("9.0", jnp.bfloat16, "cudnn"),
    ("8.0", jnp.bfloat16, "cudnn"),
    ("10.0", jnp.bfloat16, "cudnn"),
    ("9.0", jnp.float32, "written_out"),  # the kernel does not support float32
    ("7.5", jnp.bfloat16, "written_out"),
    ("gfx942", jnp.bfloat16, "written_out"),
  ],
)
def test_gpus_use_cudnns_attention_where_it_works(capability, dtype, expected):
  settings = backend.choose(device("gpu", compute_capability=capability), dtype)
  assert settings == backend.Backend(expected, row_major=True, unroll=True)


def test_attention_can_be_chosen():
  gpu = device("gpu", compute_capability="9.0")
  assert backend.choose(gpu, jnp.bfloat16, attention="written_out").attention == "written_out"
  assert backend.choose(gpu, jnp.bfloat16, attention="cudnn").attention == "cudnn"
  for unfit, dtype in ((gpu, jnp.float32), (jax.devices()[0], jnp.bfloat16)):
    with pytest.raises(UserError, match=r"model\.attention=cudnn cannot compute \w+ on .*use auto"):
      backend.choose(unfit, dtype, attention="cudnn")
