import jax
import numpy as np
import pytest

from dgia_jax.method import lora
from tests.helpers.trees import by_name

DEPTH, WIDTH, HEADS, RANK = 3, 8, 2, 2


@pytest.fixture
def towers(rng):
  """The kernels of two towers' blocks, and one bias that nothing may touch."""

  def blocks(*stack):
    draw = lambda *shape: rng.normal(size=(*stack, *shape)).astype(np.float32)
    head = WIDTH // HEADS
    return {
      "attention": {
        "qkv": {"kernel": draw(WIDTH, 3, HEADS, head), "bias": draw(3, HEADS, head)},
        "out": {"kernel": draw(HEADS, head, WIDTH)},
      },
      "mlp": {"up": {"kernel": draw(WIDTH, 4 * WIDTH)}, "down": {"kernel": draw(4 * WIDTH, WIDTH)}},
    }

  tower = lambda: {"blocks": blocks(DEPTH), "last_block": blocks(), "projection": np.ones(3)}
  return {"image": tower(), "text": tower()}


def pairs_of(towers, matrices=tuple(lora.MATRICES), seed=0):
  return lora.create(jax.random.key(seed), towers, RANK, matrices)


def test_training_starts_from_the_kernels(towers):
  merged = by_name(lora.merge(towers, pairs_of(towers), alpha=16.0))
  for name, leaf in by_name(towers).items():
    np.testing.assert_array_equal(merged[name], leaf, err_msg=name)


@pytest.mark.parametrize("matrix", lora.MATRICES)
def test_the_scaled_product_is_added_to_every_layer(towers, rng, matrix):
  pairs = pairs_of(towers, (matrix,))
  pairs = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), pairs)
  merged, pairs = by_name(lora.merge(towers, pairs, alpha=3.0)), by_name(pairs)
  for name, kernel in by_name(towers).items():
    place, _, leaf_name = name.rpartition("/")
    expected = np.asarray(kernel, np.float64)
    if leaf_name == "kernel" and place.endswith(f"/{matrix}"):
      a, b = (np.asarray(pairs[f"{place}/{side}"], np.float64) for side in "ab")
      layers = [()] if "last_block" in name else [(layer,) for layer in range(DEPTH)]
      expected = expected.copy()
      for layer in layers:
        product = a[layer].reshape(-1, RANK) @ b[layer].reshape(RANK, -1)
        expected[layer] += 3.0 / RANK * product.reshape(expected[layer].shape)
    np.testing.assert_allclose(merged[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)


def test_only_the_chosen_kernels_get_pairs_and_each_starts_differently(towers):
  pairs = by_name(pairs_of(towers, ("out", "up")))
  assert {name.split("/")[-2] for name in pairs} == {"out", "up"}
  first = [np.asarray(leaf).ravel() for name, leaf in pairs.items() if name.endswith("/a")]
  assert len(first) == 2 * 2 * 2 and len({leaf[0] for leaf in first}) == len(first)
  stacked = np.asarray(pairs["image/blocks/attention/out/a"])
  assert stacked.shape == (DEPTH, HEADS, WIDTH // HEADS, RANK)
  assert not np.array_equal(stacked[0], stacked[1])
