"""Elements of an iterator made ready in the background, a few ahead of their use."""

import collections
import concurrent.futures
from collections.abc import Iterator


class Prefetcher:
  """Iterates over `source` in a thread of its own, so that its work overlaps the user's.

  Args:
    source: an iterator with a `close()`, such as a generator; only that thread runs it.
    depth: elements made ready ahead of the one in use, at least 1.
  """

  def __init__(self, source: Iterator, depth: int):
    self._source = source
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "prefetch")
    self._ahead = collections.deque(self._ask() for _ in range(depth))

  def _ask(self) -> concurrent.futures.Future:
    return self._thread.submit(next, self._source)

  def __iter__(self):
    return self

  def __next__(self):
    """The next element; raises in its place whatever the source raised."""
    element = self._ahead.popleft()
    self._ahead.append(self._ask())
    return element.result()

  def close(self):
    """Ends the thread once what it is making is ready, and closes the source."""
    for element in self._ahead:
      element.cancel()
    self._thread.shutdown()
    self._source.close()
