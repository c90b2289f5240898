import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgia_jax.method import association, losses
from tests.helpers.golden_data import assert_gradient, assert_loss, cases, description

pytestmark = pytest.mark.accelerator

OPTIONS = {case["case"]: case for case in description("p03_memory")}
ONE_THRESHOLD = [(n, c) for n, c in cases("p02_local") if c["thr"][0] == c["thr"][1]]


@pytest.mark.parametrize("number, case", ONE_THRESHOLD)
def test_local_targets_equal_reference(number, case):
  del number
  threshold = float(case["thr"][0])
  relations = association.local_relations(case["i"], case["t"], threshold)
  off_diagonal = ~np.eye(len(relations), dtype=bool)
  np.testing.assert_array_equal(
    np.asarray(relations)[off_diagonal], case["assoc"].astype(bool)[off_diagonal]
  )
  targets = association.local_targets(case["i"], case["t"], threshold)
  np.testing.assert_allclose(targets, case["q"], rtol=1e-5, atol=1e-7)


def test_modalities(rng):
  image, text = rng.normal(size=(2, 12, 3)).astype(np.float32)
  mine = lambda modality: np.asarray(association.local_relations(image, text, 0.5, modality))
  np.testing.assert_array_equal(mine("both"), mine("image") & mine("text"))
  assert mine("image").sum() > mine("both").sum() > 12
  np.testing.assert_array_equal(mine("none"), np.eye(12))
  with pytest.raises(ValueError, match="smell"):
    mine("smell")


def _neighbours(case, threshold, exclude="top1", index=None):
  scores = losses.cosine(case["i"].astype(np.float32), case["im"].astype(np.float32))
  top = jax.lax.top_k(scores, min(4, scores.shape[1]))
  own = np.full(len(scores), -1, np.int32) if index is None else index
  return association.global_neighbours(*top, own, k=3, threshold=threshold, exclude=exclude)


@pytest.mark.parametrize("number, case", cases("p03_memory"))
def test_global_association_equals_reference(number, case):
  options = OPTIONS[number]
  threshold, scale = options["id_threshod"], options["soft_scale"]
  bank = [jnp.asarray(case[name], jnp.float32) for name in ("im", "tm")]
  neighbours = _neighbours(case, threshold)
  selected = np.where(neighbours.valid, neighbours.rows, -1)
  np.testing.assert_array_equal(selected, case["sel"])
  weights = jax.vmap(lambda s, v: association.confidence_weights_of_anchor(s, v, scale))(
    neighbours.scores, neighbours.valid
  )
  np.testing.assert_allclose(weights, case["w"], rtol=1e-5, atol=1e-6)

  # Ours lie group by group with slots of a static shape; the reference has the whole batch first,
  # then the filled slots.
  row_BxG = np.arange(selected.size // 3 * 4).reshape(-1, 4)
  order = np.concatenate([row_BxG[:, 0], row_BxG[:, 1:][selected >= 0]])
  labels = np.asarray(association.extended_labels(neighbours, scale))[order][:, order]
  np.testing.assert_allclose(labels, case["labels"], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(association.targets_of_labels(labels), case["q"], rtol=1e-5, atol=1e-6)

  def loss(image, text):
    return association.global_loss(image, text, *bank, threshold=threshold, soft_scale=scale)

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
  # By hand: every row of the extended problem, then the mean over those of the pairs.
  neighbours = _neighbours({"i": image, "im": bank[0]}, 0.5)
  beside = lambda own, mined: np.concatenate([own[:, None], mined], axis=1).reshape(4 * 4, -1)
  exists = beside(np.ones(4, bool), neighbours.valid)[:, 0]
  rows = np.asarray(neighbours.rows)
  v, t = beside(image, bank[0][rows])[exists], beside(text, bank[1][rows])[exists]
  labels = np.asarray(association.extended_labels(neighbours))[exists][:, exists]
  q = np.asarray(association.targets_of_labels(labels))
  assert len(v) > 6
  per_row = 0.0
  for logits in (losses.cosine(v, t) / 0.02, losses.cosine(t, v) / 0.02):
    log_p = np.asarray(jax.nn.log_softmax(logits, axis=1))
    per_row = per_row + (np.exp(log_p) * (log_p - np.log(q + 1e-6))).sum(1)
  of_pair = (np.arange(4 * 4) % 4 == 0)[exists]
  for mode, expected in (("batch", per_row[of_pair].mean()), ("all", per_row.mean())):
    value = association.global_loss(image, text, *bank, threshold=0.5, loss_over=mode)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
  with pytest.raises(ValueError, match="columns"):
    association.global_loss(image, text, *bank, rows="columns")


def test_exclude_self_drops_the_own_row_wherever_it_ranks():
  scores = jnp.array([[0.99, 0.98, 0.9, 0.8]] * 3)
  rows = jnp.array([[7, 5, 3, 1]] * 3)
  own = jnp.array([5, 7, 42])
  mined = association.global_neighbours(scores, rows, own, exclude="self")
  np.testing.assert_array_equal(mined.rows, [[7, 3, 1], [5, 3, 1], [7, 5, 3]])
  mined = association.global_neighbours(scores, rows, own, exclude="top1")
  np.testing.assert_array_equal(mined.rows, [[5, 3, 1]] * 3)
  with pytest.raises(ValueError, match="twin"):
    association.global_neighbours(scores, rows, own, exclude="twin")
  with pytest.raises(ValueError, match="index"):
    association.global_loss(
      jnp.ones((1, 2)), jnp.ones((1, 2)), *jnp.ones((2, 5, 2)), exclude="self"
    )


def test_a_raised_threshold_follows_the_batch(rng):
  features = rng.normal(size=(6, 4)) + 3.0
  features[5] = 100.0 * rng.normal(size=4)  # padding, which must not count
  cosine = np.asarray(losses.cosine(features, features))
  mask = np.arange(6) < 5
  others = cosine[:5, :5][~np.eye(5, dtype=bool)]
  raised = association.raised_threshold(cosine, 0.1, 1.5, mask)
  spread = np.arctanh(others)
  np.testing.assert_allclose(raised, np.tanh(spread.mean() + 1.5 * spread.std()), rtol=1e-5)
  # However widely cosines spread, something can be above the threshold.
  wide = rng.uniform(0.0, 0.95, (200, 200))
  assert wide.mean() + 2.5 * wide.std() > 1
  assert 0.9 < association.raised_threshold(wide, 0.1, 2.5) < 0.99
  assert association.raised_threshold(cosine, 0.9999, 0.1, mask) == np.float32(0.9999)
  assert association.raised_threshold(cosine, 0.3, 0.0, mask) == 0.3


def test_local_relations_follow_the_batch(rng):
  image, text = rng.normal(size=(2, 8, 3)).astype(np.float32) + 2.0
  alike = association.local_relations(image, text, threshold=0.0)
  chosen = association.local_relations(image, text, threshold=0.0, deviations=0.3)
  assert alike.all() and 8 < chosen.sum() < 64
  cosines = [np.asarray(losses.cosine(each, each)) for each in (image, text)]
  expected = np.ones((8, 8), bool)
  for cosine in cosines:
    others = cosine[~np.eye(8, dtype=bool)]
    spread = np.arctanh(others)
    expected &= cosine > np.tanh(spread.mean() + 0.3 * spread.std())
  np.testing.assert_array_equal(chosen, expected | np.eye(8, dtype=bool))


def test_neighbours_must_agree_and_find_the_anchor_back():
  neighbours = association.Neighbours(
    jnp.array([[4, 5, 6]]), jnp.array([[0.9, 0.8, 0.75]]), jnp.array([[True, True, False]])
  )
  text = jnp.array([[1.0, 0.0]])
  texts = jnp.array([[[3.0, 0.1], [0.0, 1.0], [1.0, 0.0]]])
  agreeing = association.agreeing(neighbours, text, texts, 0.7)
  np.testing.assert_array_equal(agreeing.valid, [[True, False, False]])
  back = jnp.array([[[4, 9], [5, 2], [2, 6]]])
  mutual = association.mutual(neighbours, jnp.array([2]), back)
  np.testing.assert_array_equal(mutual.valid, [[False, True, False]])
  np.testing.assert_array_equal(mutual.rows, neighbours.rows)


def test_same_image_rows_leave_their_slot_to_others():
  scores = jnp.array([[0.99, 0.98, 0.9, 0.8, 0.75]])
  rows, groups = jnp.array([[7, 5, 3, 1, 0]]), jnp.array([[2, 2, 9, 4, 5]])
  mined = association.global_neighbours(
    scores, rows, jnp.array([7]), groups=(groups, jnp.array([2]))
  )
  np.testing.assert_array_equal(mined.rows, [[3, 1, 0]])
  assert mined.valid.all()


def test_a_weaker_relation_gets_more_weight():
  weights = association.confidence_weights_of_anchor(
    jnp.array([0.95, 0.8, 0.0]), jnp.array([1, 1, 0]) > 0
  )
  assert 0 < weights[0] < weights[1] < 1 and weights[2] == 0
  # One, two and three neighbours near 0.7 to 1: the ranges stated for the method.
  for scores, low, high in ((1, 0.50, 0.57), (2, 0.64, 0.73), (3, 0.71, 0.80)):
    for score in (0.7, 1.0):
      weight = association.confidence_weights_of_anchor(
        jnp.full(scores, score), jnp.full(scores, True)
      )
      assert low - 0.01 <= weight[0] <= high + 0.01


def test_consulted_batch_pairs_become_positives():
  neighbours = association.no_neighbours(3, 2)
  related = jnp.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], bool)
  labels = association.extended_labels(neighbours, batch_relations=related)
  np.testing.assert_array_equal(labels[::3, ::3], related)
  assert labels.sum() == related.sum() + 3 * 2  # empty slots: themselves alone
  np.testing.assert_array_equal(association.extended_labels(neighbours), np.eye(9))


def test_padded_anchors_change_nothing(rng):
  image, text = rng.normal(size=(2, 5, 3)).astype(np.float32)
  bank = rng.normal(size=(2, 30, 3)).astype(np.float32)
  mask = np.arange(5) < 3

  def loss(v, t, mask):
    mined = _neighbours({"i": np.asarray(v), "im": bank[0]}, 0.3)
    return association.global_association_loss(
      v, t, mined, bank[0][mined.rows], bank[1][mined.rows], row_mask=mask
    )

  np.testing.assert_allclose(loss(image, text, mask), loss(image[:3], text[:3], None), rtol=1e-6)
