"""Batches for training and evaluation, read with grain.

The order of training pairs depends only on (seed, epoch), and a batch only on its step number. So a
checkpoint needs only the number of steps: `start_step` continues immediately, with any number of
processes or workers, with the batches of an uninterrupted run. All batches have the same shape; the
last one of an epoch is padded with rows whose mask is False.
"""

import dataclasses
import functools
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from absl import flags

from dgia_jax import worker_processes
from dgia_jax.data.pairs import Images, PairTable
from dgia_jax.errors import UserError

Batch = dict[str, np.ndarray]

_MAX_THREADS = 4  # without workers; each thread decodes one batch
_BATCHES_PER_WORKER = 2
# Batches that grain holds per worker: in its queue, in the reader behind the queue, and one at
# either end.
_BATCHES_IN_FLIGHT = 2 * _BATCHES_PER_WORKER + 2

_PATIENCE_SECONDS = 10  # for a batch after the death of a worker, which may be of another iterator
# grain's iterators that wait forever. They are kept because their finalizer would wait as well.
_ABANDONED = []


def steps_per_epoch(num_pairs: int, batch_size: int) -> int:
  """Number of batches that contain every pair once; the last may be partly filled."""
  return -(-num_pairs // batch_size)


def train_batches(
  pairs: PairTable,
  tokens_NxL: np.ndarray,
  *,
  batch_size: int,
  seed: int,
  num_epochs: int,
  start_step: int = 0,
  workers: int = 0,
  rows: Sequence[int] | np.ndarray | None = None,
) -> Iterator[Batch]:
  """This process's rows of every global batch of a run, from `start_step` on.

  Each epoch is one permutation of all pairs, cut into global batches of `batch_size` rows. Every
  process yields its own `rows`, so the global batch is the same for any number of processes.

  Args:
    pairs: N pairs; their captions and identities are not read.
    tokens_NxL: int32, the encoded captions.
    batch_size: B, global.
    seed: not negative; different seeds give every epoch another order.
    num_epochs: the run ends after num_epochs * steps_per_epoch(N, B) steps.
    start_step: number of steps already taken, 0 for a new run.
    workers: processes that decode images; 0 decodes in threads of this process.
    rows: ascending row numbers of the global batch; None for all.

  Returns:
    An iterator over dicts with b = len(rows) rows:
      "image" uint8 (b, H, W, 3), "tokens" int32 (b, L), "index" int32 (b,) pair number,
      "image_index" int32 (b,), "mask" bool (b,).
    Rows with mask False hold zeros, padding and index -1. The workers end with the data, or when
    the iterator's `close()` is called. A worker that is killed raises a UserError, and so does a
    main script without `if __name__ == "__main__":`.

  Raises:
    ValueError: the numbers do not fit together.
  """
  if len(tokens_NxL) != pairs.num_pairs:
    raise ValueError(f"{len(tokens_NxL)} rows of tokens for {pairs.num_pairs} pairs")
  epoch_steps = steps_per_epoch(pairs.num_pairs, batch_size)
  if not 0 <= start_step <= num_epochs * epoch_steps:
    raise ValueError(f"start_step={start_step} is not in [0, {num_epochs * epoch_steps}]")
  load = _TrainBatch(
    images=pairs.images,
    image_of_pair_N=pairs.image_of_pair_N,
    tokens_NxL=tokens_NxL,
    image_shape=pairs.images[0].shape,
    batch_size=batch_size,
    seed=seed,
    rows=_checked_rows(batch_size, rows),
  )
  return _iterate(load, range(start_step, num_epochs * epoch_steps), workers)


def longest_at_each_rank(
  lengths_N: np.ndarray,
  *,
  batch_size: int,
  seed: int,
  num_epochs: int,
  shards: int = 1,
  parts: int = 1,
) -> np.ndarray:
  """The longest caption at each rank, when the captions of a device are sorted by length.

  Args:
    lengths_N: tokens of every training caption.
    batch_size, seed, num_epochs: as in `train_batches`.
    shards: S, devices that a batch is split over.
    parts: P, parts of a device's rows that are sorted separately; part p holds rows p, p + P, ...

  Returns:
    int (R,), ascending, R = batch_size / S / P: the maximum over all batches of the run.
  """
  steps = steps_per_epoch(len(lengths_N), batch_size)
  # The text tower measures a padded row, which has no end token, as one token.
  padded = np.ones(steps * batch_size, lengths_N.dtype)
  longest = np.zeros(batch_size // shards // parts, lengths_N.dtype)
  for epoch in range(num_epochs):
    padded[: len(lengths_N)] = lengths_N[epoch_order(len(lengths_N), seed, epoch)]
    by_device_and_part = padded.reshape(steps * shards, len(longest), parts)
    np.maximum(longest, np.sort(by_device_and_part, axis=1).max(axis=(0, 2)), out=longest)
  return longest


def image_batches(
  pairs: PairTable,
  *,
  batch_size: int,
  workers: int = 0,
  rows: Sequence[int] | np.ndarray | None = None,
) -> Iterator[Batch]:
  """All M images once and in order, in padded batches of b = len(rows) rows.

  Returns:
    An iterator like that of `train_batches`, over dicts of
      "image" uint8 (b, H, W, 3), "index" int32 (b,) image number or -1, "mask" bool (b,).
  """
  load = _ImageBatch(
    images=pairs.images,
    image_shape=pairs.images[0].shape,
    batch_size=batch_size,
    rows=_checked_rows(batch_size, rows),
  )
  return _iterate(load, range(steps_per_epoch(pairs.num_images, batch_size)), workers)


@dataclasses.dataclass(frozen=True, eq=False)
class _ImageBatch:
  """Creates this process's rows of evaluation batch `step`; pickled to the worker processes."""

  images: Images
  image_shape: tuple[int, int, int]
  batch_size: int
  rows: np.ndarray

  def __call__(self, step: int) -> Batch:
    index = np.asarray(_positions(step, self.batch_size, self.rows, len(self.images)), np.int32)
    return {
      "image": _read_images(self.images, index, (len(self.rows), *self.image_shape)),
      "index": _pad(index, len(self.rows), -1),
      "mask": np.arange(len(self.rows)) < len(index),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class _TrainBatch:
  """Creates this process's rows of training batch `step`; pickled to the worker processes.

  It has only the parts of the PairTable that batches contain, so no identities.
  """

  images: Images
  image_of_pair_N: np.ndarray
  tokens_NxL: np.ndarray
  image_shape: tuple[int, int, int]
  batch_size: int
  seed: int
  rows: np.ndarray

  def __call__(self, step: int) -> Batch:
    num_pairs = len(self.tokens_NxL)
    epoch, step = divmod(step, steps_per_epoch(num_pairs, self.batch_size))
    positions = _positions(step, self.batch_size, self.rows, num_pairs)
    index = epoch_order(num_pairs, self.seed, epoch)[positions]
    image_index = self.image_of_pair_N[index]
    return {
      "image": _read_images(self.images, image_index, (len(self.rows), *self.image_shape)),
      "tokens": _pad(self.tokens_NxL[index], len(self.rows), 0),
      "index": _pad(index, len(self.rows), -1),
      "image_index": _pad(image_index, len(self.rows), -1),
      "mask": np.arange(len(self.rows)) < len(index),
    }


@functools.lru_cache(maxsize=2)
def epoch_order(num_pairs: int, seed: int, epoch: int) -> np.ndarray:
  """int32 (N,), the epoch's permutation of all pairs.

  It sorts raw random bits, which NumPy guarantees never to change. grain's own shuffle needs no
  memory, but it is measurably less random (among 68,108 pairs, neighbouring rows, often of one
  person, share a batch 6 % less often than by chance) and slower for small N.
  """
  bits_N = np.random.PCG64([seed, epoch]).random_raw(num_pairs)
  return np.argsort(bits_N, kind="stable").astype(np.int32)


def _checked_rows(batch_size: int, rows: Sequence[int] | np.ndarray | None) -> np.ndarray:
  """Row numbers of the global batch that this process yields. Raises ValueError."""
  rows = np.arange(batch_size) if rows is None else np.asarray(rows)
  if not len(rows) or rows[0] < 0 or rows[-1] >= batch_size or (np.diff(rows) < 1).any():
    raise ValueError(f"rows={rows} are not ascending numbers in [0, {batch_size})")
  return rows


def _positions(step: int, batch_size: int, rows: np.ndarray, total: int) -> np.ndarray:
  """Positions in [0, total) of the rows of global batch `step` that are not padding."""
  positions = step * batch_size + rows
  return positions[positions < total]


def _read_images(images: Images, index: np.ndarray, shape: tuple[int, int, int, int]) -> np.ndarray:
  """A uint8 batch of the images in `index`, padded with zeros."""
  batch = np.zeros(shape, np.uint8)
  for row, image in enumerate(index):
    batch[row] = images[image]
  return batch


def _pad(rows: np.ndarray, size: int, value: int) -> np.ndarray:
  """Appends rows of `value` up to `size` rows."""
  width = [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
  return np.pad(rows, width, constant_values=value)


def _iterate(load: Callable[[int], Batch], steps: range, workers: int) -> Iterator[Batch]:
  """load(step) for all steps in order, computed ahead in threads or processes."""
  worker_processes.leave_if_work_is_repeated()
  workers = min(workers, len(steps))
  threads = 1 if workers else min(_MAX_THREADS, os.cpu_count() or 1)
  dataset = grain.MapDataset.range(steps.start, steps.stop).map(load)
  dataset = dataset.to_iter_dataset(
    grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
  )
  if workers:
    # grain reads a command line flag when it starts workers, which fails outside absl.app.run.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    batch_bytes = len(load.rows) * int(np.prod(load.image_shape))
    options = grain.experimental.DatasetOptions(
      min_shm_size=_smallest_shared_array(workers * _BATCHES_IN_FLIGHT * batch_bytes)
    )
    dataset = grain.experimental.WithOptionsIterDataset(dataset, options).mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_BATCHES_PER_WORKER),
      worker_init_fn=_start_worker,
    )
  return _Batches(iter(dataset), workers)


class _Batches(Iterator[Batch]):
  """grain's iterator, with the death of a worker process explained to the user.

  A worker that is killed while it sends a batch leaves a part of it, and grain waits forever for
  the rest. So each batch is awaited in a thread, and given up if workers are dead and none comes.
  """

  def __init__(self, batches: grain.DatasetIterator[Batch], workers: int):
    self._batches, self._workers = batches, workers
    self._processes = set()
    self._abandoned = False

  def __next__(self) -> Batch:
    if not self._workers:
      return next(self._batches)
    results = queue.SimpleQueue()
    threading.Thread(target=self._put_next, args=(results,), daemon=True).start()
    remaining = _PATIENCE_SECONDS
    while True:
      try:
        outcome = results.get(timeout=1)
      except queue.Empty:
        outcome = None
      # After the wait, in which the first batch starts the workers. A dead one is not listed.
      self._processes.update(_worker_processes())
      if outcome is None:
        exit_codes = [process.exitcode for process in self._processes if process.exitcode]
        remaining -= bool(exit_codes)
        if remaining < 0:
          self._abandoned = True
          _ABANDONED.append(self._batches)
          raise self._killed(exit_codes[0])
        continue
      batch, error = outcome
      if error is None:
        return batch
      if isinstance(error, RuntimeError) and "terminated unexpectedly" in str(error):
        raise self._killed(re.search(r"exit code (-?\d+)|$", str(error))[1]) from error
      raise error

  def _put_next(self, results: queue.SimpleQueue) -> None:
    try:
      results.put((next(self._batches), None))
    except BaseException as error:  # raised again in the thread that waits for the result
      results.put((None, error))

  def _killed(self, exit_code: int | str | None) -> UserError:
    if str(exit_code) == str(worker_processes.UNGUARDED_EXIT):
      return UserError(
        "the processes that decode images import the main script, which starts the work again: put"
        ' its work below `if __name__ == "__main__":`, or set config.dataset.workers=0'
      )
    return UserError(
      f"a process that decodes images was killed (exit code {exit_code}), often because the memory"
      f" is full: start again, with a smaller config.dataset.workers than {self._workers} if this"
      " repeats"
    )

  def close(self) -> None:
    """Ends the worker processes. (Abandoned ones end with this process.)"""
    if not self._abandoned:
      self._batches.close()


def _worker_processes() -> Iterator[multiprocessing.process.BaseProcess]:
  """The living workers of all of grain's iterators; it does not tell which are whose."""
  children = multiprocessing.active_children()
  return (child for child in children if child.name.startswith(worker_processes.NAME))


def _smallest_shared_array(needed_bytes: int, folder: str = "/dev/shm") -> int:
  """Size in bytes from which workers send an array through shared memory instead of a pipe.

  Containers often have a /dev/shm of 64 MB, and a worker that overfills it is killed. If the space
  is too small all arrays take the pipe, which costs a copy; otherwise only small arrays do.
  """
  if os.path.isdir(folder):
    space = os.statvfs(folder)
    if space.f_bavail * space.f_frsize < 2 * needed_bytes:
      return sys.maxsize
  return 1 << 16


def _start_worker(worker: int, num_workers: int) -> None:
  """Runs first in every worker process."""
  del worker, num_workers
  # grain imports jax in its workers, where it must never occupy a GPU.
  os.environ["JAX_PLATFORMS"] = "cpu"
  if "jax" in sys.modules:
    sys.modules["jax"].config.update("jax_platforms", "cpu")
  # The workers of a killed training process would wait for it forever.
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
  os._exit(1)
