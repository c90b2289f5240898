"""What every implementation is given."""

import dataclasses

import numpy as np
import pytest

from dgia_jax.data import batches
from dgia_jax.errors import UserError
from experiments.speed.benchmark import workload as workload_lib
from tests.helpers.benchmark_workload import workload


def unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_batches_look_like_those_of_the_pipeline():
  small_workload = workload()
  batch = workload_lib.batch(small_workload, 8)
  assert batch["image"].shape == (8, 16, 16, 3) and batch["image"].dtype == np.uint8
  assert len(set(batch["index"])) == 8 and batch["index"].max() < 64
  tokens = batch["tokens"]
  assert tokens.shape == (8, 8)
  end = tokens.argmax(axis=1)
  assert (tokens[:, 0] == 298).all() and (tokens.max(axis=1) == 299).all()
  words = tokens[np.arange(8), end - 1]
  assert (words < small_workload.mask_id).all() and (words > 0).all()
  np.testing.assert_array_equal(tokens, workload_lib.batch(small_workload, 8)["tokens"])


def test_captions_have_realistic_lengths():
  longer = workload(tokenizer__context_length=77)
  longer = dataclasses.replace(longer, num_pairs=20_000)
  tokens = workload_lib.captions(longer)
  lengths = tokens.argmax(axis=1) + 1
  np.testing.assert_array_equal((tokens > 0).sum(axis=1), lengths)
  assert abs(lengths.mean() - 28) < 0.3 and abs(lengths.std() - 9) < 0.3
  assert lengths.min() >= 6 and lengths.max() <= 77


def test_a_batch_is_one_of_the_run():
  """The run's captions are cut to the lengths of the run's batches."""
  small_workload = workload()
  order = batches.epoch_order(64, small_workload.config.seed, 0)
  np.testing.assert_array_equal(workload_lib.batch(small_workload, 8)["index"], order[:8])


def test_fields_are_replaced_in_a_copy():
  small_workload = workload()
  other = small_workload.replace(batch_size=16, model__remat=True)
  assert (other.config.batch_size, other.config.model.remat) == (16, True)
  assert small_workload == workload() and other.num_pairs == 64


def test_banks_hold_neighbours_below_and_above_the_threshold():
  features = workload_lib.features(16, 64)[0]
  bank = workload_lib.bank(features, 200)
  own = np.sum(unit(features)[np.arange(200) % 16] * unit(bank), axis=1)
  assert bank.dtype == np.float32 and own.max() > 0.9 > 0.7 > own.min()
  assert 0.2 < np.mean(own > 0.7) < 0.8


def test_some_pairs_of_a_batch_are_alike():
  image, text = workload_lib.features(16, 64)
  related = (unit(image) @ unit(image).T > 0.7) & (unit(text) @ unit(text).T > 0.7)
  assert 16 < related.sum() < 128


def test_the_measured_epoch_has_all_losses():
  assert workload(local_association__start_epoch=3).epoch == 3
  assert workload().epoch == 2


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"loss__itc_reduction": "sum"}, "loss.itc_reduction"),
    ({"gradient_accumulation": 2}, "gradient_accumulation"),
    ({"batch_size": 128}, "batch_size=128"),
  ],
)
def test_what_cannot_be_compared_is_refused(fields, message):
  with pytest.raises(UserError, match=message):
    workload_lib.check(workload(**fields))


def test_the_default_is_accepted():
  workload_lib.check(workload())
