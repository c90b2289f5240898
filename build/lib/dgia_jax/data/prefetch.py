"""A background thread that prepares the next elements of an iterator."""

import collections
import concurrent.futures
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Iterator[T], Generic[T]):
  """Runs `source` in its own thread, so that its work overlaps with the consumer's.

  grain's `ThreadPrefetchIterDataset` accepts only iterators with a checkpointable state, which it
  copies for every element. Our source is a generator that already places batches on the devices,
  and the step number is its whole state.

  Args:
    source: a generator; only the background thread runs it.
    depth: number of elements to prepare ahead of the current one, at least 1.
  """

  def __init__(self, source: Generator[T], depth: int):
    self._source = source
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "prefetch")
    self._pending = collections.deque(self._request() for _ in range(depth))

  def _request(self) -> concurrent.futures.Future:
    return self._thread.submit(next, self._source)

  def __iter__(self) -> "Prefetcher[T]":
    return self

  def __next__(self) -> T:
    """Returns the next element, or raises the exception that `source` raised in its place."""
    element = self._pending.popleft()
    self._pending.append(self._request())
    return element.result()

  def close(self) -> None:
    """Waits for the element in progress, then ends the thread and closes the source."""
    for element in self._pending:
      element.cancel()
    self._thread.shutdown()
    self._source.close()
