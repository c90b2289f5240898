import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgia_jax import sharding
from dgia_jax.method import bank_search, losses, memory_bank
from tests.helpers.compiled_bank import gather, search, update
from tests.helpers.golden_data import cases, description
from tests.helpers.meshes import mesh_of

ONE = pytest.param((1, 1, 1), marks=pytest.mark.accelerator)
MESHES = [ONE, (8, 1, 1), (2, 4, 1), (2, 2, 2)]
UPDATES = {case["case"]: case for case in description("p04_update")}


def _bank(mesh, image, text, rows):
  """A bank on `mesh` with a row for each of `image`, of which `rows` are written."""
  bank = jax.jit(lambda: memory_bank.create(*image.shape), out_shardings=sharding.bank_rows(mesh))()
  weight = np.ones(len(rows), np.float32)
  return update(bank, rows, rows // 2, image[rows], text[rows], weight, mesh=mesh)


@pytest.fixture(params=MESHES, ids=str)
def mesh(request):
  return mesh_of(*request.param)


@pytest.mark.parametrize("anchor", bank_search.ANCHORS)
def test_search_equals_brute_force_with_ties_to_the_lowest_row(mesh, anchor, rng):
  # One-hot rows of power-of-two norms: cosines are exact, and most of them tie.
  image, text = (
    np.eye(4, dtype=np.float32)[rng.integers(0, 4, 96)] * 2.0 ** rng.integers(-3, 4, (96, 1))
    for _ in range(2)
  )
  image, text = image.astype(np.float32), text.astype(np.float32)
  written = np.sort(rng.permutation(96)[:70]).astype(np.int32)
  bank = _bank(mesh, image, text, written)
  queries = image[:10], text[10:20]
  scores, rows = search(bank, queries, 6, mesh=mesh, anchor=anchor, block_rows=5)
  by = [np.asarray(losses.cosine(q, f)) for q, f in zip(queries, (image, text), strict=True)]
  full = np.array({"image": by[0], "text": by[1], "both": (by[0] + by[1]) / 2}[anchor])
  full[:, np.setdiff1d(np.arange(96), written)] = -np.inf
  expected = np.argsort(-full, axis=1, kind="stable")[:, :6]
  np.testing.assert_array_equal(rows, expected)
  np.testing.assert_array_equal(scores, np.take_along_axis(full, expected, 1))


@pytest.mark.accelerator
def test_a_search_as_it_is_run_is_exact(rng):
  # As many rows as make several blocks and segments; every row lies there twice, so all scores tie.
  mesh, half = mesh_of(*(1, 1, 1)), rng.normal(size=(15_000, 64)).astype(np.float32)
  image = np.concatenate([half, half])
  bank = _bank(mesh, image, image, np.arange(30_000, dtype=np.int32))
  scores, rows = search(bank, (image[:64], image[:64]), 6, mesh=mesh)
  exact = half.astype(np.float64) / np.linalg.norm(half, axis=1, keepdims=True)
  exact = exact[:64] @ exact.T
  best = np.argsort(-exact, axis=1)[:, :3]
  np.testing.assert_array_equal(rows, np.stack([best, best + 15_000], 2).reshape(64, 6))
  np.testing.assert_allclose(scores[:, ::2], np.take_along_axis(exact, best, 1), rtol=1e-5)


def test_rows_never_written_are_never_found(mesh, rng):
  image, text = rng.normal(size=(2, 96, 8)).astype(np.float32)
  bank = _bank(mesh, image, text, np.array([40, 41], np.int32))
  scores, rows = search(bank, (image[:3], text[:3]), 4, mesh=mesh)
  assert set(np.asarray(rows[:, :2]).ravel()) == {40, 41}
  assert np.isneginf(scores[:, 2:]).all()


def test_gather_fetches_rows_from_their_owners(mesh, rng):
  image, text = rng.normal(size=(2, 96, 8)).astype(np.float32)
  bank = _bank(mesh, image, text, np.arange(96, dtype=np.int32))
  rows = rng.integers(0, 96, (5, 3))
  mined_image, mined_images = gather((bank.image, bank.group), rows, mesh=mesh)
  np.testing.assert_array_equal(mined_image, image[rows])
  np.testing.assert_array_equal(mined_images, rows // 2)
  assert not np.any(gather(bank.image, np.array([-1, 96]), mesh=mesh))


@pytest.mark.parametrize("number, case", [c for c in cases("p04_update") if c[0] in UPDATES])
def test_update_equals_reference(mesh, number, case):
  options = UPDATES[number]
  size = memory_bank.padded_rows(options["N"])
  grow = lambda x: np.pad(x.astype(np.float32), ((0, size - len(x)), (0, 0)))
  bank = memory_bank.create(size, options["D"])
  written = np.where(np.arange(size) < options["N"], 0, -1).astype(np.int32)
  bank = bank.replace(image=grow(case["im"]), text=grow(case["tm"]), group=written)
  bank = jax.device_put(bank, sharding.bank_rows(mesh))
  weight = 1.0 if options["epoch"] == 1 else options["alpha"]
  index = case["index"].astype(np.int32)
  features = [case[name].astype(np.float32) for name in ("i", "t")]
  weights = np.full(len(index), weight, np.float32)
  after = update(bank, index, index, *features, weights, mesh=mesh)
  rows = options["N"]
  np.testing.assert_allclose(after.image[:rows], case["im_after_f64"], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(after.text[:rows], case["tm_after_f64"], rtol=1e-5, atol=1e-6)
  assert not np.any(after.image[rows:])
  norms = np.linalg.norm(np.asarray(after.text)[index], axis=1)
  np.testing.assert_allclose(1 / np.asarray(after.text_inverse_norm)[index], norms, rtol=1e-5)


def test_masked_pairs_write_nothing(mesh, rng):
  image, text = rng.normal(size=(2, 96, 8)).astype(np.float32)
  bank = _bank(mesh, image, text, np.arange(96, dtype=np.int32))
  before = jax.device_get(bank)
  index = np.array([3, -1, 95], np.int32)
  after = update(
    bank, index, index, image[:3] + 1, text[:3], np.ones(3, np.float32), mesh=mesh,
    row_mask=np.array([True, False, False]),
  )  # fmt: skip
  changed = np.any(np.asarray(after.image) != before.image, axis=1)
  np.testing.assert_array_equal(np.flatnonzero(changed), [3])


def test_a_new_row_takes_the_feature_whole_whatever_the_weight(mesh, rng):
  image, text = rng.normal(size=(2, 96, 8)).astype(np.float32)
  bank = _bank(mesh, image, text, np.array([1], np.int32))
  index = np.array([1, 2], np.int32)
  after = update(bank, index, index, image[5:7], text[5:7], np.full(2, 0.25, np.float32), mesh=mesh)
  np.testing.assert_allclose(after.image[1], 0.25 * image[5] + 0.75 * image[1], rtol=1e-6)
  np.testing.assert_array_equal(after.image[2], image[6])


def test_the_bank_stays_split_and_is_updated_in_place(rng):
  mesh = mesh_of(*(2, 2, 2))
  image, text = rng.normal(size=(2, 96, 8)).astype(np.float32)
  bank = _bank(mesh, image, text, np.arange(96, dtype=np.int32))
  assert {shard.data.shape for shard in bank.image.addressable_shards} == {(12, 8)}
  step = jax.jit(
    lambda b, i: memory_bank.update(
      b, i, i, image[:4], text[:4], np.ones(4, np.float32), mesh=mesh
    ),
    donate_argnums=0,
  )
  text_of_program = step.lower(bank, np.arange(4, dtype=np.int32)).compile().as_text()
  assert "all-gather" not in text_of_program
  after = step(bank, np.arange(4, dtype=np.int32))
  assert bank.image.is_deleted() and not after.image.is_deleted()


def test_a_search_and_its_rows_travel_as_candidates_only(rng):
  """Two collectives of candidates (scores and rows) and one of winning rows, none of the bank."""
  mesh = mesh_of(*(2, 2, 2))

  def mine(bank, queries):
    _, rows = bank_search.search(bank, (queries, queries), 4, mesh=mesh)
    return memory_bank.gather(bank.image, rows[:, 1:], mesh=mesh)

  image = rng.normal(size=(96, 8)).astype(np.float32)
  bank = _bank(mesh, image, image, np.arange(96, dtype=np.int32))
  program = jax.jit(mine).lower(bank, image[:16]).compile().as_text()
  kinds = "all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute"
  found = re.findall(rf"= \(?(\w+\[[\d,]*\]).* ({kinds})(?:-start)?\(", program)
  assert sorted(kind for _, kind in found) == [
    "all-gather", "all-to-all", "all-to-all", "reduce-scatter",
  ], found  # fmt: skip
  elements = [np.prod([int(n) for n in shape[4:-1].split(",") if n]) for shape, _ in found]
  assert max(elements) <= 16 * 3 * 8, found


@pytest.mark.parametrize("columns", [300, 1024, 2560, 3001])
def test_the_best_by_segments_are_the_best(columns, rng):
  # Few distinct values: ties everywhere, within segments and across them.
  scores = rng.integers(0, 30, (7, columns)).astype(np.float32)
  scores[:, rng.permutation(columns)[: columns // 3]] = -np.inf
  scores[0] = -np.inf
  best, column = bank_search._top(jnp.asarray(scores), 4)
  expected = np.argsort(-scores, axis=1, kind="stable")[:, :4]
  np.testing.assert_array_equal(column, expected)
  np.testing.assert_array_equal(best, np.take_along_axis(scores, expected, 1))


def test_block_rows_hold_the_memory_of_a_search():
  assert bank_search.block_rows_for(64, "cpu") == 2048
  for platform in ("cpu", "gpu", "tpu"):
    assert bank_search.block_rows_for(16384, platform) * 16384 <= 2**25


def test_padded_rows_do_not_depend_on_the_mesh():
  assert memory_bank.padded_rows(1) == 3072 == memory_bank.padded_rows(3072)
  for devices in (1, 2, 3, 4, 6, 8, 12, 256, 1024):
    assert memory_bank.padded_rows(68108) % devices == 0


def test_unknown_anchor():
  with pytest.raises(ValueError, match="smell"):
    bank_search.search(
      memory_bank.create(8, 2), (None, None), 1, mesh=sharding.create_mesh(), anchor="smell"
    )
