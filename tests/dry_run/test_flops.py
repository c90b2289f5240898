"""Counted FLOPs against published totals, the compiler's count and the chips' data sheets."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dgia_jax.dry_run import flops
from dgia_jax.method import losses
from dgia_jax.models import dual_encoder, families

VIT_B_16 = dual_encoder.SIZES["vit_b_16"]


def test_a_pair_of_the_paper():
  forward = flops.forward_flops(VIT_B_16, (384, 128), 77)
  full = flops.forward_flops(VIT_B_16, (384, 128), 77, full_last_block=True)
  assert sum(full.values()) == pytest.approx(40.5e9, rel=0.01)
  # Two of twelve parts of a block remain in the last one.
  assert sum(forward.values()) == pytest.approx((1 - 10 / 12 / 12) * 40.5e9, rel=0.01)
  assert flops.train_pair_flops(VIT_B_16, (384, 128), 77) == pytest.approx(
    6 * sum(forward.values())
  )
  assert flops.train_pair_flops(VIT_B_16, (384, 128), 77, views=1) == pytest.approx(
    3 * sum(forward.values())
  )
  assert flops.train_pair_flops(VIT_B_16, (384, 128), 77, full_last_block=True) == pytest.approx(
    6 * sum(full.values())
  )
  # 96 of 192 patches of the distorted view: a fifth of a pair.
  dropped = flops.train_pair_flops(VIT_B_16, (384, 128), 77, patch_drop_ratio=0.5)
  half = flops.forward_flops(VIT_B_16, (384, 64), 77)
  assert dropped == pytest.approx(3 * (sum(forward.values()) + sum(half.values())))
  assert dropped / (6 * sum(forward.values())) == pytest.approx(0.785, abs=0.005)
  alone = flops.train_pair_flops(VIT_B_16, (384, 128), 77, views=1, patch_drop_ratio=0.5)
  assert alone == pytest.approx(3 * sum(forward.values()))
  # Half of the tokens: half of the text tower, except for attention and what is done once.
  shorter = flops.forward_flops(VIT_B_16, (384, 128), 38.5)
  assert shorter["image"] == forward["image"]
  assert 0.48 < shorter["text"] / forward["text"] < 0.5


def test_clips_published_count():
  """CLIP's image towers at 224: 17.6 (B/16) and 81 (L/14) billion multiply-adds, as fvcore says."""
  image = lambda name: flops.forward_flops(dual_encoder.SIZES[name], (224, 224), 77, True)["image"]
  assert image("vit_b_16") == pytest.approx(2 * 17.6e9, rel=0.02)
  assert image("vit_l_14") == pytest.approx(2 * 81.0e9, rel=0.02)


def compiled_flops(function, *arguments):
  return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def test_towers_against_the_compilers_count():
  """One block in the loop, which the compiler counts once, and the last one."""
  tower = dual_encoder.TowerSize(width=256, depth=2, heads=4)
  size = dual_encoder.Size(tower, tower, feature_width=128, patch_size=8)
  model = nnx.eval_shape(
    lambda: dual_encoder.DualEncoder(
      size, image_size=(64, 32), context_length=16, vocab_size=300, rngs=nnx.Rngs(0)
    )
  )
  graphdef, params = nnx.split(model, nnx.Param)
  expected = flops.forward_flops(size, (64, 32), 16)
  found = compiled_flops(
    lambda p, x: nnx.merge(graphdef, p).encode_image(x),
    params,
    jax.ShapeDtypeStruct((4, 64, 32, 3), jnp.float32),
  )
  assert expected["image"] <= found / 4 <= 1.05 * expected["image"]
  found = compiled_flops(
    lambda p, x: nnx.merge(graphdef, p).encode_text(x),
    params,
    jax.ShapeDtypeStruct((4, 16), jnp.int32),
  )
  assert expected["text"] <= found / 4 <= 1.05 * expected["text"]


def test_siglip_against_the_compilers_count():
  """One block in the loop, the last one of all patches, and the pooling."""
  tower = dual_encoder.TowerSize(width=256, depth=2, heads=4, mlp_width=600)
  size = dual_encoder.Size(tower, tower, 256, patch_size=8, family=families.SIGLIP)
  model = nnx.eval_shape(
    lambda: dual_encoder.DualEncoder(
      size, image_size=(64, 32), context_length=16, vocab_size=300, rngs=nnx.Rngs(0)
    )
  )
  graphdef, params = nnx.split(model, nnx.Param)
  expected = flops.forward_flops(size, (64, 32), 16)
  counted = {
    "image": compiled_flops(
      lambda p, x: nnx.merge(graphdef, p).encode_image(x),
      params,
      jax.ShapeDtypeStruct((4, 64, 32, 3), jnp.float32),
    ),
    "text": compiled_flops(
      lambda p, x: nnx.merge(graphdef, p).encode_text(x),
      params,
      jax.ShapeDtypeStruct((4, 16), jnp.int32),
    ),
  }
  for tower_name, count in counted.items():
    assert expected[tower_name] <= count / 4 <= 1.06 * expected[tower_name]


def test_search_and_losses():
  assert flops.bank_flops(64, 68_108, 512) == 2 * 64 * 68_108 * 512
  features = jax.ShapeDtypeStruct((96, 512), jnp.float32)
  one_loss = compiled_flops(jax.value_and_grad(losses.itc, argnums=(0, 1)), features, features)
  # Three losses of the batch, four products of relations, one loss over 4 times the rows.
  products = 3 * 3 + 4 + 3 * 16
  assert flops.loss_flops(96, 512) == pytest.approx(one_loss / 3 * products, rel=0.1)
  assert flops.loss_flops(96, 512, k=0) == pytest.approx(one_loss / 3 * 13, rel=0.1)


@pytest.mark.parametrize(
  "kind, peak",
  [
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5", 459e12),
    ("TPU v5p", 459e12),
    ("TPU v6 lite", 918e12),
    ("NVIDIA H200", 989.4e12),
    ("NVIDIA H100 80GB HBM3", 989.4e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA A100-SXM4-40GB", 312e12),
    ("cpu", None),
  ],
)
def test_peaks(kind, peak):
  assert flops.peak_flops(kind) == peak
