"""The ranking against reference numbers, against a slow obvious ranking, and at its edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgia_jax import sharding
from dgia_jax.training import retrieval_metrics
from tests.helpers.golden_data import cases, description

pytestmark = pytest.mark.accelerator  # a wrong reduction shows on a GPU or TPU and not on a CPU

MEANS = {case["case"]: case for case in description("p06_rank")}


def slow_statistics(similarity, query_ids, gallery_ids):
  """One query at a time, by the definitions: (first rank, AP, INP), None without a match."""
  rows = []
  for scores, query_id in zip(similarity, query_ids, strict=True):
    order = sorted(range(len(scores)), key=lambda g: (-scores[g], g))
    ranks = [r for r, g in enumerate(order, start=1) if gallery_ids[g] == query_id]
    if not ranks:
      rows.append(None)
      continue
    precision = [(i + 1) / rank for i, rank in enumerate(ranks)]
    rows.append((ranks[0], sum(precision) / len(ranks), len(ranks) / ranks[-1]))
  return rows


def slow_metrics(similarity, query_ids, gallery_ids, ks=(1, 5, 10)):
  rows = slow_statistics(similarity, query_ids, gallery_ids)
  first, ap, inp = np.array([row for row in rows if row is not None]).T
  recall = {f"R{k}": 100 * np.mean(first <= k) for k in ks}
  return {**recall, "mAP": 100 * ap.mean(), "mINP": 100 * inp.mean()}


def tied_example(seed, num_queries=37, num_items=23, num_ids=9):
  """Similarities with few distinct values, so that most comparisons are ties."""
  rng = np.random.default_rng(seed)
  similarity = rng.integers(-2, 3, (num_queries, num_items)).astype(np.float32) / 2
  return (
    similarity,
    rng.integers(0, num_ids, num_queries),
    rng.integers(0, num_ids, num_items),
  )


@pytest.mark.parametrize("number, case", cases("p06_rank"))
def test_reference_numbers(number, case):
  ids = case["q_pids"], case["g_pids"]
  scores = retrieval_metrics.retrieval_metrics(case["sim"], *ids)
  assert list(scores) == ["R1", "R5", "R10", "mAP", "mINP"]
  for name in scores:
    assert type(scores[name]) is float
    np.testing.assert_allclose(scores[name], MEANS[number][name], rtol=1e-5, err_msg=name)

  rows = retrieval_metrics.ranking_statistics(case["sim"], *(i.astype(np.int32) for i in ids))
  np.testing.assert_allclose(rows.average_precision, case["AP_per_query_f64"], rtol=1e-5)
  np.testing.assert_allclose(rows.inverse_negative_penalty, case["INP_per_query_f64"], rtol=1e-5)
  assert bool(rows.has_positive.all())


def test_table_by_hand():
  similarity = np.array(
    [[0.9, 0.1, 0.8, 0.3], [0.5, 0.5, 0.5, 0.6], [0.1, 0.2, 0.3, 0.4]], np.float32
  )
  gallery = np.array([7, 8, 7, 9])
  rows = retrieval_metrics.ranking_statistics(similarity, np.array([7, 8, 5]), gallery)
  # Query 0: correct at ranks 1 and 2. Query 1: item 1 loses to item 3 and, tied, to item 0.
  # Query 2: person 5 is not in the gallery.
  np.testing.assert_array_equal(rows.first_rank, [1, 3, 5])
  np.testing.assert_allclose(rows.average_precision, [1.0, 1 / 3, 0.0], rtol=1e-6)
  np.testing.assert_allclose(rows.inverse_negative_penalty, [1.0, 1 / 3, 0.0], rtol=1e-6)
  np.testing.assert_array_equal(rows.has_positive, [True, True, False])

  scores = retrieval_metrics.retrieval_metrics(similarity, [7, 8, 5], gallery, ks=(1, 2, 3, 10))
  expected = {"R1": 50, "R2": 50, "R3": 100, "R10": 100, "mAP": 200 / 3, "mINP": 200 / 3}
  assert scores == pytest.approx(expected, rel=1e-6)
  assert retrieval_metrics.queries_without_match([7, 8, 5], gallery) == 1


@pytest.mark.parametrize("seed", range(4))
def test_ties_go_to_the_lowest_index(seed):
  similarity, query_ids, gallery_ids = tied_example(seed)
  rows = retrieval_metrics.ranking_statistics(similarity, query_ids, gallery_ids)
  expected = slow_statistics(similarity, query_ids, gallery_ids)
  for q, row in enumerate(expected):
    assert bool(rows.has_positive[q]) == (row is not None)
    if row is not None:
      statistics = (rows.first_rank[q], rows.average_precision[q], rows.inverse_negative_penalty[q])
      np.testing.assert_allclose(statistics, row, rtol=1e-5)


@pytest.mark.parametrize("block", [1, 5, 36, 37, 512])
def test_blocks_and_their_padding_change_nothing(block):
  similarity, query_ids, gallery_ids = tied_example(11)
  scores = retrieval_metrics.retrieval_metrics(similarity, query_ids, gallery_ids, block=block)
  expected = slow_metrics(similarity, query_ids, gallery_ids)
  assert scores == pytest.approx(expected, rel=1e-5)
  assert scores == retrieval_metrics.retrieval_metrics(similarity, query_ids, gallery_ids)


@pytest.mark.parametrize("block", [8, 40, 64])
def test_features_give_the_same_as_their_matrix(block):
  rng = np.random.default_rng(3)
  query_ids, gallery_ids = rng.integers(0, 12, 40), rng.integers(0, 12, 30)
  center = rng.normal(size=(12, 16))
  query = (center[query_ids] + rng.normal(size=(40, 16))) * rng.uniform(0.1, 9, (40, 1))
  gallery = (center[gallery_ids] + rng.normal(size=(30, 16))) * rng.uniform(0.1, 9, (30, 1))
  cosine = query @ gallery.T / np.linalg.norm(query, axis=1)[:, None]
  cosine = cosine / np.linalg.norm(gallery, axis=1)[None, :]
  expected = slow_metrics(cosine, query_ids, gallery_ids)
  scores = retrieval_metrics.retrieval_metrics_from_features(
    query.astype(np.float32), jnp.asarray(gallery, jnp.float32), query_ids, gallery_ids, block=block
  )
  assert scores == pytest.approx(expected, rel=1e-5)


def test_perfect_reversed_and_permuted_rankings():
  query_ids = np.arange(6)
  perfect = retrieval_metrics.retrieval_metrics(np.eye(6, dtype=np.float32), query_ids, query_ids)
  assert set(perfect.values()) == {100.0}
  last = retrieval_metrics.retrieval_metrics(-np.eye(6, dtype=np.float32), query_ids, query_ids)
  assert last == pytest.approx({"R1": 0, "R5": 0, "R10": 100, "mAP": 100 / 6, "mINP": 100 / 6})

  rng = np.random.default_rng(5)  # distinct similarities: the order of the gallery is irrelevant
  similarity = rng.permutation(24 * 18).reshape(24, 18).astype(np.float32)
  query_ids, gallery_ids = rng.integers(0, 5, 24), rng.integers(0, 5, 18)
  shuffle = rng.permutation(18)
  assert retrieval_metrics.retrieval_metrics(similarity, query_ids, gallery_ids) == pytest.approx(
    retrieval_metrics.retrieval_metrics(similarity[:, shuffle], query_ids, gallery_ids[shuffle]),
    rel=1e-6,
  )


def test_ids_may_be_large_or_strings():
  similarity, query_ids, gallery_ids = tied_example(2)
  expected = retrieval_metrics.retrieval_metrics(similarity, query_ids, gallery_ids)
  for convert in (lambda ids: ids.astype(np.int64) + 2**40, lambda ids: [f"p{i}" for i in ids]):
    args = similarity, convert(query_ids), convert(gallery_ids)
    assert retrieval_metrics.retrieval_metrics(*args) == expected


def test_runs_under_the_transfer_guard():
  similarity, query_ids, gallery_ids = tied_example(4)
  with jax.transfer_guard("disallow"):
    guarded = retrieval_metrics.retrieval_metrics(similarity, query_ids, gallery_ids, block=16)
    retrieval_metrics.retrieval_metrics_from_features(
      similarity, similarity, query_ids, query_ids, block=16
    )
  assert guarded == retrieval_metrics.retrieval_metrics(similarity, query_ids, gallery_ids)


def test_unusable_input_is_refused():
  similarity = np.ones((2, 3), np.float32)
  with pytest.raises(ValueError, match="none of the 2 queries has a correct item"):
    retrieval_metrics.retrieval_metrics(similarity, [1, 2], [3, 4, 5])
  with pytest.raises(ValueError, match=r"shape \(2, 3\), the ids need \(3, 2\)"):
    retrieval_metrics.retrieval_metrics(similarity, [1, 2, 3], [1, 2])
  with pytest.raises(ValueError, match="the ids need"):
    retrieval_metrics.retrieval_metrics_from_features(similarity, similarity, [1], [1, 2])
  with pytest.raises(ValueError, match="non-empty"):
    retrieval_metrics.retrieval_metrics(np.ones((0, 2), np.float32), [], [1, 2])
  similarity[1, 2] = np.nan
  with pytest.raises(ValueError, match="query 1 hold NaN"):
    retrieval_metrics.retrieval_metrics(similarity, [1, 2], [1, 2, 2])
  features = np.ones((2, 4), np.float32)
  with pytest.raises(ValueError, match="NaN"):  # the second gallery item has no direction
    retrieval_metrics.retrieval_metrics_from_features(
      features, features * [[1], [0]], [1, 2], [1, 2]
    )


def test_chance_level_is_the_mean_share_of_correct_items():
  gallery = ["a", "a", "b", "c"]
  # Queries a, b and d: 2 of 4 items, 1 of 4 items, and no item, which is not counted.
  assert retrieval_metrics.chance_level(["a", "b", "d"], gallery) == pytest.approx(37.5)
  assert retrieval_metrics.chance_level(["d"], gallery) == 0.0
  for query_ids, gallery_ids in (([], gallery), (["a"], [])):
    with pytest.raises(ValueError):
      retrieval_metrics.chance_level(query_ids, gallery_ids)


def test_chance_level_is_what_random_rankings_reach(rng):
  query_ids, gallery_ids = rng.integers(0, 5, 40), rng.integers(0, 5, 12)
  random = rng.random((200, 40, 12), np.float32)
  reached = [
    retrieval_metrics.retrieval_metrics(similarity, query_ids, gallery_ids)["R1"]
    for similarity in random
  ]
  assert np.mean(reached) == pytest.approx(
    retrieval_metrics.chance_level(query_ids, gallery_ids), abs=1.5
  )


def test_relation_accuracy():
  assert retrieval_metrics.relation_accuracy(3, 4) == 75.0
  assert retrieval_metrics.relation_accuracy(0, 5) == 0.0
  assert retrieval_metrics.relation_accuracy(0, 0) is None


def ranked(similarity, query_ids, gallery_ids):
  """(first rank, AP, INP) of every query as rows; a query without a match has G + 1, 0, 0."""
  missing = (similarity.shape[1] + 1, 0.0, 0.0)
  return np.array([row or missing for row in slow_statistics(similarity, query_ids, gallery_ids)])


def assert_statistics(rows, expected_Qx3):
  columns = (rows.first_rank, rows.average_precision, rows.inverse_negative_penalty)
  np.testing.assert_allclose(np.stack(columns, axis=1), expected_Qx3, rtol=1e-5)


def assert_equals_numpy(num_queries, num_items):
  example = tied_example(num_items, num_queries, num_items)
  assert_statistics(retrieval_metrics.ranking_statistics(*example), ranked(*example))


@pytest.mark.parametrize("num_items", range(1, 41))
def test_every_small_gallery_equals_numpy(num_items):
  assert_equals_numpy(1 + num_items * 7 % 40, num_items)  # 7 and 40 share no factor: every Q once


@pytest.mark.slow
@pytest.mark.parametrize("num_items", range(1, 41))
def test_every_pair_of_small_sizes_equals_numpy(num_items):
  for num_queries in range(1, 41):
    assert_equals_numpy(num_queries, num_items)


@pytest.mark.parametrize("size", [(513, 40), (1, 2000), (520, 520)])
def test_shapes_past_a_block_equal_numpy(size):
  similarity, query_ids, gallery_ids = tied_example(0, *size, num_ids=50)
  scores = retrieval_metrics.retrieval_metrics(similarity, query_ids, gallery_ids)
  assert scores == pytest.approx(slow_metrics(similarity, query_ids, gallery_ids), rel=1e-5)


@pytest.mark.parametrize("axes", [("data", None), (None, "data"), ("data", "fsdp")])
@pytest.mark.parametrize("size", [(8, 8), (16, 8), (8, 24), (40, 40)])
def test_rows_and_columns_split_over_all_devices_equal_numpy(axes, size):
  """Gallery columns over eight devices, one column each in the smallest case."""
  devices = jax.device_count()
  shape = (devices, 1) if "fsdp" not in axes else (devices // 2 or 1, min(devices, 2))
  mesh = sharding.create_mesh(*shape)
  similarity, query_ids, gallery_ids = tied_example(sum(size), *size)
  layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
  rows = retrieval_metrics.ranking_statistics(
    jax.device_put(similarity, layout), query_ids, gallery_ids
  )
  assert_statistics(rows, ranked(similarity, query_ids, gallery_ids))


def test_ranking_on_a_mesh_equals_one_device(rng):
  """Query blocks split over all devices, a number of queries that they do not divide."""
  mesh = sharding.create_mesh(-1, *((2, 2) if jax.device_count() == 8 else (1, 1)))
  query, gallery = (rng.normal(size=(n, 6)).astype(np.float32) for n in (37, 21))
  ids = rng.integers(0, 5, 37), rng.integers(0, 5, 21)
  layouts = (sharding.batch(mesh), sharding.replicated(mesh))
  rank = retrieval_metrics.retrieval_metrics_from_features
  split = rank(query, gallery, *ids, block=10, layouts=layouts)
  assert split == pytest.approx(rank(query, gallery, *ids))
