"""The background thread: order, number of elements ahead, errors and the end."""

import threading

import pytest

from dgia_jax.data.prefetch import Prefetcher

SECONDS = 20  # until a wait counts as a deadlock


def logged(count, log, failure=None):
  """Yields 0, 1, ...; appends each element with its thread, and "closed" at the end, to `log`."""
  try:
    for number in range(count):
      log.append((number, threading.current_thread()))
      yield number
    if failure:
      raise failure
  finally:
    log.append("closed")


def test_elements_come_in_order_from_another_thread():
  log = []
  prefetcher = Prefetcher(logged(50, log), 3)
  assert list(prefetcher) == list(range(50))
  assert next(prefetcher, "end") == "end"
  prefetcher.close()
  assert {thread for _, thread in log[:50]}.isdisjoint({threading.current_thread()})


def test_the_next_element_is_prepared_while_the_current_one_is_used():
  """The third element is ready before the second is requested; otherwise the wait would fail."""
  third = threading.Event()

  def source():
    yield 0
    yield 1
    third.set()
    yield 2
    yield 3

  prefetcher = Prefetcher(source(), 2)
  assert next(prefetcher) == 0
  assert third.wait(SECONDS)
  prefetcher.close()


def test_no_more_elements_are_prepared_than_requested():
  log = []
  prefetcher = Prefetcher(logged(50, log), 2)
  assert [next(prefetcher), next(prefetcher)] == [0, 1]
  prefetcher.close()
  assert len(log) - log.count("closed") <= 4 and log[-1] == "closed"


def test_an_error_is_raised_in_its_place():
  prefetcher = Prefetcher(logged(2, [], KeyError("broken image")), 2)
  assert [next(prefetcher), next(prefetcher)] == [0, 1]
  with pytest.raises(KeyError, match="broken image"):
    next(prefetcher)
  prefetcher.close()


def test_closing_ends_the_thread_before_the_last_element():
  before = threading.active_count()
  prefetcher = Prefetcher(logged(50, []), 2)
  next(prefetcher)
  assert threading.active_count() == before + 1
  prefetcher.close()
  assert threading.active_count() == before
