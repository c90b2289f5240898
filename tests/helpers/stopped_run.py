"""A training that ends between two steps, as if its process had died."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import pytest

from dgia_jax.training import train


class Stopped(Exception):
  """Stands for anything that ends a process between two steps."""


@contextlib.contextmanager
def stopped_after(steps: int) -> Iterator[None]:
  """Trainings in this context end after so many steps, and are expected to."""
  original = train.global_batches

  def batches(setup, tokens_NxL, steps_done, transform_batch=None):
    for step, batch in enumerate(
      original(setup, tokens_NxL, steps_done, transform_batch), steps_done
    ):
      if step >= steps:
        raise Stopped
      yield batch

  # Not as a transformation of batches, with which a run does not pack its captions.
  with mock.patch.object(train, "global_batches", batches), pytest.raises(Stopped):
    yield
