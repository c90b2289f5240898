"""Batches of captions hold every caption once and whole, in few shapes."""

import numpy as np
import pytest

from dgia_jax.models import caption_batches
from tests.models.test_caption_packing import tokens_of


@pytest.mark.parametrize("context_length", [20, 77])
@pytest.mark.parametrize("num_captions", [1, 16, 45])
def test_every_caption_is_in_one_batch_up_to_its_end_token(num_captions, context_length):
  lengths = np.random.default_rng(0).integers(3, context_length + 1, num_captions)
  tokens_NxL = tokens_of(lengths, context_length)
  batches = list(caption_batches.batches(tokens_NxL, 16))
  numbers = np.concatenate([batch.numbers_b for batch in batches])
  assert sorted(numbers) == list(range(num_captions))
  for batch in batches:
    assert batch.tokens_BxT.shape[0] == 16 and batch.tokens_BxT.shape[1] in (20, 32, 64, 77)
    assert batch.tokens_BxT.dtype == np.int32
    for number, row in zip(batch.numbers_b, batch.tokens_BxT, strict=False):
      np.testing.assert_array_equal(row, tokens_NxL[number, : len(row)])
      assert row.max() == 999
    # Padding is a caption, too: features of rows without an end token could be NaN.
    assert (batch.tokens_BxT.max(axis=1) == 999).all()


def test_sorted_batches_are_short():
  lengths = np.random.default_rng(0).permutation([20] * 48 + [40] * 15 + [77])
  batches = list(caption_batches.batches(tokens_of(lengths), 16))
  assert [batch.tokens_BxT.shape for batch in batches] == [(16, 77)] + 3 * [(16, 32)]
  uncut = list(caption_batches.batches(tokens_of(lengths), 16, by_length=False))
  assert [batch.tokens_BxT.shape for batch in uncut] == 4 * [(16, 77)]
  numbers = np.concatenate([batch.numbers_b for batch in uncut])
  np.testing.assert_array_equal(numbers, np.arange(64))
