"""All forms of attention that are compared compute the same, and the table shows their cycles."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas import tpu as pltpu

from dgia_jax.dry_run.hlo_estimates import COPIES, OTHERS, PRODUCTS
from dgia_jax.models.backend import Backend
from dgia_jax.models.transformer import Attention
from experiments.speed import tpu_attention

SMALL = (
  tpu_attention.Tower("image", 13, 128, 2, False, (16,)),
  tpu_attention.Tower("text", 7, 128, 2, True, (8,)),
)


@pytest.mark.parametrize("tower", SMALL, ids=lambda tower: tower.name)
def test_all_forms_compute_the_same(tower):
  layer = Attention(
    tower.width, tower.heads, causal=tower.causal, out_std=0.1, dtype=jnp.float32,
    backend=Backend(), rngs=nnx.Rngs(0),
  )  # fmt: skip
  x = jax.random.normal(jax.random.key(1), (2, max(tower.padded), tower.width))
  ours, *others = tpu_attention.forms(tower)
  want = layer(x[:, : ours.tokens])
  written_out = layer.attend
  for form in others:
    layer.attend, context = form.attend or written_out, pltpu.force_tpu_interpret_mode()
    if form.attend is tpu_attention.splash:  # that mode cannot run it under `vmap`
      layer.attend = functools.partial(form.attend, interpret=True)
      context = contextlib.nullcontext()
    with context:
      got = layer(x[:, : form.tokens], tower.tokens)
    np.testing.assert_allclose(got[:, : tower.tokens], want, atol=2e-5, err_msg=form.name)


def test_cycles_of_a_kernel():
  image, _ = tpu_attention.TOWERS
  # Nine products of 256 x 256 with heads of 128, 64 x 12 times; v5e does 131,072 operations.
  want = 9 * 64 * 12 * 2 * 256 * 256 * 128 / 131_072
  assert tpu_attention.kernel_cycles("v5e:1x1", image) == want


def test_the_table():
  image, _ = tpu_attention.TOWERS
  ours, *_, kernel = tpu_attention.forms(image)
  one = {
    "cycles": {PRODUCTS: 5_617_183, COPIES: 348_162, OTHERS: 120_405},
    "bytes": 3.1e9,
    "megabytes": 262.1,
  }
  rows = tpu_attention.table({("v5e:1x1", image, form): one for form in (ours, kernel)})[-2:]
  assert rows == [
    "| v5e:1x1 | image | ours | 193 | 5,617 | 348 | 120 |  | 6,086 | 262 | 3,100 |",
    "| v5e:1x1 | image | Pallas splash kernel | 193 | 5,617 | 348 | 120 | 885 | 6,970 | 262"
    " | 3,100 |",
  ]
