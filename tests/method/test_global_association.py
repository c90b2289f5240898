import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgia_jax.method import global_association, losses
from tests.helpers.golden_data import assert_gradient, assert_loss, cases, description

pytestmark = pytest.mark.accelerator

OPTIONS = {case["case"]: case for case in description("p03_memory")}
KEEP = {"k": 3, "threshold": 0.7, "exclude": "top1"}


def _neighbours(case, threshold, exclude="top1", index=None):
  scores = losses.cosine(case["i"].astype(np.float32), case["im"].astype(np.float32))
  top = jax.lax.top_k(scores, min(4, scores.shape[1]))
  own = np.full(len(scores), -1, np.int32) if index is None else index
  return global_association.select_neighbours(*top, own, k=3, threshold=threshold, exclude=exclude)


@pytest.mark.parametrize("number, case", cases("p03_memory"))
def test_global_association_equals_reference(number, case):
  options = OPTIONS[number]
  threshold, scale = options["id_threshod"], options["soft_scale"]
  bank = [jnp.asarray(case[name], jnp.float32) for name in ("im", "tm")]
  neighbours = _neighbours(case, threshold)
  selected = np.where(neighbours.valid, neighbours.rows, -1)
  np.testing.assert_array_equal(selected, case["sel"])
  weights = global_association.confidence_weights(neighbours, scale)
  np.testing.assert_allclose(weights, case["w"], rtol=1e-5, atol=1e-6)

  # Our rows are ordered pair by pair, with a static number of slots; the reference has the whole
  # batch first, then the filled slots.
  row_BxE = np.arange(selected.size // 3 * 4).reshape(-1, 4)
  order = np.concatenate([row_BxE[:, 0], row_BxE[:, 1:][selected >= 0]])
  labels = np.asarray(global_association.extended_labels(neighbours, scale))[order][:, order]
  np.testing.assert_allclose(labels, case["labels"], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(losses.target_distribution(labels), case["q"], rtol=1e-5, atol=1e-6)

  def loss(image, text):
    return global_association.global_loss(image, text, *bank, threshold=threshold, soft_scale=scale)

  features = [case[name].astype(np.float32) for name in ("i", "t")]
  value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(*features)
  assert_loss(value, case["loss_f64"])
  assert_gradient(gradients[0], case["gi"])
  assert_gradient(gradients[1], case["gt"])


def test_reference_covers_every_number_of_neighbours():
  counts = np.sum([case["cand_hist"] for case in OPTIONS.values()], axis=0)
  assert (counts > 0).all(), counts


def test_rows_batch_is_the_mean_over_batch_rows(rng):
  image, text = rng.normal(size=(2, 4, 3)).astype(np.float32)
  bank = rng.normal(size=(2, 20, 3)).astype(np.float32)
  # Computed separately: every row of the extended problem, then the mean over those of the pairs.
  neighbours = _neighbours({"i": image, "im": bank[0]}, 0.5)
  beside = lambda own, mined: np.concatenate([own[:, None], mined], axis=1).reshape(4 * 4, -1)
  exists = beside(np.ones(4, bool), neighbours.valid)[:, 0]
  rows = np.asarray(neighbours.rows)
  v, t = beside(image, bank[0][rows])[exists], beside(text, bank[1][rows])[exists]
  labels = np.asarray(global_association.extended_labels(neighbours))[exists][:, exists]
  q = np.asarray(losses.target_distribution(labels))
  assert len(v) > 6
  per_row = 0.0
  for logits in (losses.cosine(v, t) / 0.02, losses.cosine(t, v) / 0.02):
    log_p = np.asarray(jax.nn.log_softmax(logits, axis=1))
    per_row = per_row + (np.exp(log_p) * (log_p - np.log(q + 1e-6))).sum(1)
  of_pair = (np.arange(4 * 4) % 4 == 0)[exists]
  for mode, expected in (("batch", per_row[of_pair].mean()), ("all", per_row.mean())):
    value = global_association.global_loss(image, text, *bank, threshold=0.5, loss_over=mode)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
  with pytest.raises(ValueError, match="columns"):
    global_association.global_loss(image, text, *bank, loss_over="columns")


def test_the_loss_in_one_call_takes_temperature_and_epsilon(rng):
  image, text = rng.normal(size=(2, 4, 3)).astype(np.float32)
  bank = rng.normal(size=(2, 20, 3)).astype(np.float32)
  neighbours = _neighbours({"i": image, "im": bank[0]}, 0.5)
  rows = np.asarray(neighbours.rows)
  scaled = {"temperature": 0.5, "epsilon": 1e-3}
  expected = global_association.global_association_loss(
    image, text, neighbours, bank[0][rows], bank[1][rows], loss_over="all", **scaled
  )
  value = global_association.global_loss(image, text, *bank, threshold=0.5, **scaled)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  default = global_association.global_loss(image, text, *bank, threshold=0.5)
  assert not np.allclose(value, default, rtol=0.1)


def test_exclude_self_drops_the_own_row_wherever_it_ranks():
  scores = jnp.array([[0.99, 0.98, 0.9, 0.8]] * 3)
  rows = jnp.array([[7, 5, 3, 1]] * 3)
  own = jnp.array([5, 7, 42])
  mined = global_association.select_neighbours(scores, rows, own, **KEEP | {"exclude": "self"})
  np.testing.assert_array_equal(mined.rows, [[7, 3, 1], [5, 3, 1], [7, 5, 3]])
  mined = global_association.select_neighbours(scores, rows, own, **KEEP)
  np.testing.assert_array_equal(mined.rows, [[5, 3, 1]] * 3)
  with pytest.raises(ValueError, match="twin"):
    global_association.select_neighbours(scores, rows, own, **KEEP | {"exclude": "twin"})
  with pytest.raises(ValueError, match="index"):
    global_association.global_loss(
      jnp.ones((1, 2)), jnp.ones((1, 2)), *jnp.ones((2, 5, 2)), exclude="self"
    )


def test_same_image_rows_leave_their_slot_to_others():
  scores = jnp.array([[0.99, 0.98, 0.9, 0.8, 0.75]])
  rows, images = jnp.array([[7, 5, 3, 1, 0]]), jnp.array([[2, 2, 9, 4, 5]])
  mined = global_association.select_neighbours(
    scores, rows, jnp.array([7]), image_ids=(images, jnp.array([2])), **KEEP
  )
  np.testing.assert_array_equal(mined.rows, [[3, 1, 0]])
  assert mined.valid.all()


def test_the_own_row_is_dropped_although_another_caption_of_its_image_ranks_first():
  """Rows 7 and 5 hold one image; row 7 is the pair's own and ranks second."""
  scores = jnp.array([[0.99, 0.98, 0.9, 0.8, 0.75]])
  rows, images = jnp.array([[5, 7, 3, 1, 0]]), jnp.array([[2, 2, 9, 4, 5]])
  select = functools.partial(
    global_association.select_neighbours, scores, rows, jnp.array([7]), **KEEP
  )
  mined = select(image_ids=(images, jnp.array([2])))
  np.testing.assert_array_equal(mined.rows, [[3, 1, 0]])
  assert mined.valid.all()
  # The released code never looks at images: it drops the first, whatever it is.
  np.testing.assert_array_equal(select().rows, [[7, 3, 1]])


def _weights(scores, valid):
  neighbours = global_association.Neighbours(
    jnp.zeros((1, len(scores)), int), jnp.array([scores]), jnp.array([valid])
  )
  return global_association.confidence_weights(neighbours)[0]


def test_a_weaker_relation_gets_more_weight():
  weights = _weights([0.95, 0.8, 0.0], [True, True, False])
  assert 0 < weights[0] < weights[1] < 1 and weights[2] == 0
  # One, two and three neighbours near 0.7 to 1: the ranges stated for the method.
  for scores, low, high in ((1, 0.50, 0.57), (2, 0.64, 0.73), (3, 0.71, 0.80)):
    for score in (0.7, 1.0):
      weight = _weights([score] * scores, [True] * scores)
      assert low - 0.01 <= weight[0] <= high + 0.01


def test_padded_anchors_change_nothing(rng):
  image, text = rng.normal(size=(2, 5, 3)).astype(np.float32)
  bank = rng.normal(size=(2, 30, 3)).astype(np.float32)
  mask = np.arange(5) < 3

  def loss(v, t, mask):
    mined = _neighbours({"i": np.asarray(v), "im": bank[0]}, 0.3)
    return global_association.global_association_loss(
      v,
      t,
      mined,
      bank[0][mined.rows],
      bank[1][mined.rows],
      loss_over="all",
      temperature=0.02,
      epsilon=1e-6,
      row_mask=mask,
    )

  np.testing.assert_allclose(loss(image, text, mask), loss(image[:3], text[:3], None), rtol=1e-6)


def test_empty_slots_are_related_only_to_themselves():
  neighbours = global_association.no_neighbours(3, 2)
  np.testing.assert_array_equal(global_association.extended_labels(neighbours), np.eye(9))


def test_the_older_name_of_the_rows_still_works(rng):
  image, text = rng.normal(size=(2, 4, 3)).astype(np.float32)
  bank = rng.normal(size=(2, 20, 3)).astype(np.float32)
  expected = global_association.global_loss(image, text, *bank, threshold=0.5, loss_over="batch")
  older = global_association.global_loss(image, text, *bank, threshold=0.5, rows="batch")
  assert older == expected
