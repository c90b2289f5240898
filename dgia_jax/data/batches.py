"""Batches for training and evaluation, read with grain.

The order of training is a pure function of (seed, epoch), and a batch a pure function of its step
number. So the only data position worth saving is the number of steps taken: `start_step` continues
there at no cost, with any number of processes or workers, and gives the batches that an
uninterrupted run would have given. Every batch has the same shape; the last one of an epoch is
filled up with rows whose mask is False.
"""

import dataclasses
import functools
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from absl import flags

from dgia_jax.data.pairs import Images, PairTable

Batch = dict[str, np.ndarray]

_MAX_THREADS = 4  # without workers; each thread decodes one batch
_BATCHES_PER_WORKER = 2
# Batches that grain holds for one worker at a time: in its queue, in the reader behind the queue,
# and one on either end.
_BATCHES_IN_FLIGHT = 2 * _BATCHES_PER_WORKER + 2


def steps_per_epoch(num_pairs: int, batch_size: int) -> int:
  """Batches that hold every pair once; the last may be partly filled."""
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
  order_N: np.ndarray | None = None,
) -> Iterator[Batch]:
  """This process's share of every global batch of a run, from `start_step` on.

  Each epoch is one permutation of all pairs, cut into global batches of `batch_size` rows; a
  process yields its `rows` of each, so the global batch does not depend on who reads it.

  Args:
    pairs: N pairs; their captions and identities are not read.
    tokens_NxL: int32 (N, L), the encoded captions.
    batch_size: B, global.
    seed: not negative; runs with different seeds share no epoch's order.
    num_epochs: the run ends after num_epochs * steps_per_epoch(N, B) steps.
    start_step: number of steps already taken, 0 for a new run.
    workers: processes that decode images; 0 decodes in threads of this process.
    rows: rows of every global batch to yield, ascending; None: all.
    order_N: int32 (N,), a permutation of all pairs to take instead of the epochs' own.

  Returns:
    An iterator over dicts with b = len(rows) rows:
      "image" uint8 (b, H, W, 3), "tokens" int32 (b, L), "index" int32 (b,) pair number,
      "image_index" int32 (b,), "mask" bool (b,).
    Rows with mask False hold zeros, padding and index -1. It has a `close()` that ends the workers;
    the end of the data does so too.

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
    order_N=order_N,
  )
  return _iterate(load, range(start_step, num_epochs * epoch_steps), workers)


def image_batches(
  pairs: PairTable,
  *,
  batch_size: int,
  workers: int = 0,
  rows: Sequence[int] | np.ndarray | None = None,
) -> Iterator[Batch]:
  """All M images once, in order, in padded batches of b = len(rows) rows.

  Returns:
    An iterator like that of `train_batches` over dicts of
      "image" uint8 (b, H, W, 3), "index" int32 (b,) image number or -1, "mask" bool (b,).
  """
  load = _ImageBatch(
    images=pairs.images,
    image_shape=pairs.images[0].shape,
    batch_size=batch_size,
    rows=_checked_rows(batch_size, rows),
  )
  return _iterate(load, range(steps_per_epoch(pairs.num_images, batch_size)), workers)


def token_batches(
  tokens_NxL: np.ndarray, *, batch_size: int, rows: Sequence[int] | np.ndarray | None = None
) -> Iterator[Batch]:
  """All N encoded captions once, in order, in padded batches of b = len(rows).

  Yields:
    dicts of "tokens" int32 (b, L), "index" int32 (b,) pair number or -1, "mask" bool (b,).
  """
  rows = _checked_rows(batch_size, rows)
  for step in range(steps_per_epoch(len(tokens_NxL), batch_size)):
    positions = _positions(step, batch_size, rows, len(tokens_NxL))
    yield {
      "tokens": _pad(tokens_NxL[positions], len(rows), 0),
      "index": _pad(np.asarray(positions, np.int32), len(rows), -1),
      "mask": np.arange(len(rows)) < len(positions),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class _ImageBatch:
  """Makes the local part of evaluation batch `step`; sent to the worker processes."""

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
  """Makes the local part of training batch `step`; sent to the worker processes.

  Holds what a batch is made of and nothing else of the PairTable, above all no identities.
  """

  images: Images
  image_of_pair_N: np.ndarray
  tokens_NxL: np.ndarray
  image_shape: tuple[int, int, int]
  batch_size: int
  seed: int
  rows: np.ndarray
  order_N: np.ndarray | None

  def __call__(self, step: int) -> Batch:
    num_pairs = len(self.tokens_NxL)
    epoch, step = divmod(step, steps_per_epoch(num_pairs, self.batch_size))
    positions = _positions(step, self.batch_size, self.rows, num_pairs)
    order_N = self.order_N
    if order_N is None:
      order_N = _epoch_order(num_pairs, self.seed, epoch)
    index = order_N[positions]
    image_index = self.image_of_pair_N[index]
    return {
      "image": _read_images(self.images, image_index, (len(self.rows), *self.image_shape)),
      "tokens": _pad(self.tokens_NxL[index], len(self.rows), 0),
      "index": _pad(index, len(self.rows), -1),
      "image_index": _pad(image_index, len(self.rows), -1),
      "mask": np.arange(len(self.rows)) < len(index),
    }


@functools.lru_cache(maxsize=2)
def _epoch_order(num_pairs: int, seed: int, epoch: int) -> np.ndarray:
  """int32 (N,), the epoch's permutation of all pairs.

  Sorts raw random bits, which numpy promises never to change. grain's own shuffle needs no memory,
  but is measurably less random (with 68,108 pairs, neighbouring rows, often one person, meet in a
  batch 6 % less often than by chance) and slower for small N.
  """
  bits_N = np.random.PCG64([seed, epoch]).random_raw(num_pairs)
  return np.argsort(bits_N, kind="stable").astype(np.int32)


def _checked_rows(batch_size: int, rows: Sequence[int] | np.ndarray | None) -> np.ndarray:
  """Rows of the global batch that this process yields."""
  rows = np.arange(batch_size) if rows is None else np.asarray(rows)
  if not len(rows) or rows[0] < 0 or rows[-1] >= batch_size or (np.diff(rows) < 1).any():
    raise ValueError(f"rows={rows} are not ascending numbers in [0, {batch_size})")
  return rows


def _positions(step: int, batch_size: int, rows: np.ndarray, total: int) -> np.ndarray:
  """Positions in [0, total) of the real ones among `rows` of global batch `step`."""
  positions = step * batch_size + rows
  return positions[positions < total]


def _read_images(images: Images, index: np.ndarray, shape: tuple[int, int, int, int]) -> np.ndarray:
  """uint8 batch of the images in `index`, zeros below them."""
  batch = np.zeros(shape, np.uint8)
  for row, image in enumerate(index):
    batch[row] = images[image]
  return batch


def _pad(rows: np.ndarray, size: int, value: int) -> np.ndarray:
  """Appends rows of `value` up to `size` rows."""
  width = [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
  return np.pad(rows, width, constant_values=value)


def _iterate(load: Callable[[int], Batch], steps: range, workers: int) -> Iterator[Batch]:
  """load(step) for the steps in order, computed ahead of time in threads or processes."""
  workers = min(workers, len(steps))
  threads = 1 if workers else min(_MAX_THREADS, os.cpu_count() or 1)
  dataset = grain.MapDataset.range(steps.start, steps.stop).map(load)
  dataset = dataset.to_iter_dataset(
    grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
  )
  if workers:
    # grain reads a command line flag on the way to its workers, which fails outside absl.app.run.
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
  return iter(dataset)


def _smallest_shared_array(needed_bytes: int, folder: str = "/dev/shm") -> int:
  """Bytes from which on arrays travel from the workers in shared memory instead of a pipe.

  Containers often have a /dev/shm of 64 MB, and a worker that overfills it is killed. Then all
  arrays take the pipe, which costs a copy. Elsewhere only small arrays do.
  """
  if os.path.isdir(folder):
    space = os.statvfs(folder)
    if space.f_bavail * space.f_frsize < 2 * needed_bytes:
      return sys.maxsize
  return 1 << 16


def _start_worker(worker: int, num_workers: int) -> None:
  """Runs first in each worker process."""
  del worker, num_workers
  # grain imports jax in its workers; should anything there use it, it must not take a GPU.
  os.environ["JAX_PLATFORMS"] = "cpu"
  if "jax" in sys.modules:
    sys.modules["jax"].config.update("jax_platforms", "cpu")
  # When the training process is killed outright, its workers would wait for it for ever.
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
  os._exit(1)
