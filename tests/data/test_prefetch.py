"""The background thread: order, how far ahead it runs, errors and the end."""

import threading

import pytest

from dgia_jax.data.prefetch import Prefetcher

SECONDS = 20  # until a wait counts as a hang


def recorded(count, made, failure=None):
  """Yields 0, 1, ..; says in `made` what it made, in which thread, and that it was closed."""
  try:
    for number in range(count):
      made.append((number, threading.current_thread()))
      yield number
    if failure:
      raise failure
  finally:
    made.append("closed")


def test_elements_come_in_order_from_another_thread():
  made = []
  ahead = Prefetcher(recorded(50, made), 3)
  assert list(ahead) == list(range(50))
  assert next(ahead, "end") == "end"
  ahead.close()
  assert {thread for _, thread in made[:50]}.isdisjoint({threading.current_thread()})


def test_the_next_is_made_while_this_one_is_used():
  """The third element is ready before the second was asked for: a reader in turn would hang."""
  third = threading.Event()

  def source():
    yield 0
    yield 1
    third.set()
    yield 2
    yield 3

  ahead = Prefetcher(source(), 2)
  assert next(ahead) == 0
  assert third.wait(SECONDS)
  ahead.close()


def test_it_runs_no_further_ahead_than_asked():
  made = []
  ahead = Prefetcher(recorded(50, made), 2)
  assert [next(ahead), next(ahead)] == [0, 1]
  ahead.close()
  assert len(made) - made.count("closed") <= 4 and made[-1] == "closed"


def test_an_error_comes_in_its_place():
  ahead = Prefetcher(recorded(2, [], KeyError("broken image")), 2)
  assert [next(ahead), next(ahead)] == [0, 1]
  with pytest.raises(KeyError, match="broken image"):
    next(ahead)
  ahead.close()


def test_closing_ends_the_thread_in_the_middle():
  before = threading.active_count()
  ahead = Prefetcher(recorded(50, []), 2)
  next(ahead)
  assert threading.active_count() == before + 1
  ahead.close()
  assert threading.active_count() == before
