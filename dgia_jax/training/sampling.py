"""Which pairs share a batch: drawn at random, or led by the memory bank's neighbours.

A led epoch's order is a function of seed, epoch and the bank at the epoch's start. A checkpoint at
the end of an epoch holds that bank; for a resume in the middle of one the order is kept in a file.
"""

import functools
import os
import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from dgia_jax import sharding
from dgia_jax.data.guided_order import guided_order
from dgia_jax.errors import UserError
from dgia_jax.method import memory_bank

FILE = "order.npz"
_QUERIES = 1024  # bank rows that look for their neighbours at once


def is_guided(config, epoch):
  """Whether the bank leads the sampling of an epoch, counted from 1."""
  return config.sampling.group > 1 and epoch >= config.sampling.start_epoch


def order_of_epoch(run, bank, step):
  """The order of the epoch that `step` steps lead into.

  Args:
    run: build.Run.
    bank: memory_bank.Bank as it is after `step` steps.
    step: steps taken so far.

  Returns:
    int32 (N,) for a led epoch, None for one that is drawn at random.

  Raises:
    UserError: the epoch has begun and its order is lost.
  """
  epoch, steps_into = divmod(step, run.steps_per_epoch)
  if not is_guided(run.config, epoch + 1):
    return None
  path = pathlib.Path(run.workdir) / FILE
  if steps_into:
    return _read(path, epoch)
  order_N = guided_order(
    neighbours_of_all(run, bank), run.config.sampling.group, run.config.seed, epoch
  )
  if jax.process_index() == 0:
    partial = path.with_name(f".{FILE}")
    with partial.open("wb") as file:
      np.savez(file, order=order_N, epoch=epoch)
    os.replace(partial, path)
  return order_N


def neighbours_of_all(run, bank):
  """Every pair's most similar other pairs by the bank, those of its own image left out.

  Returns:
    int32 (N, sampling.group - 1), best first, -1 in empty slots; the same in all processes.
  """
  image_N = run.train_pairs.image_of_pair_N
  num_pairs, wanted = len(image_N), run.config.sampling.group - 1
  count = min(wanted + int(np.bincount(image_N).max()), num_pairs)
  search = _compiled_search(run.mesh, count, run.config.global_association.anchor)
  found = []
  for start in range(0, num_pairs, _QUERIES):
    rows = np.minimum(np.arange(start, start + _QUERIES), num_pairs - 1).astype(np.int32)
    found.append(np.asarray(search(bank, jax.device_put(rows, sharding.replicated(run.mesh)))))
  rows_NxC = np.concatenate(found)[:num_pairs]
  mates_NxC = (rows_NxC >= 0) & (image_N[rows_NxC] != image_N[:, None])
  order_NxC = np.argsort(~mates_NxC, axis=1, kind="stable")[:, :wanted]
  rows_NxK = np.take_along_axis(np.where(mates_NxC, rows_NxC, -1), order_NxC, axis=1)
  return rows_NxK.astype(np.int32)


@functools.cache
def _compiled_search(mesh, count, anchor):
  """Function (bank, rows) -> (len(rows), count) the best bank rows of some bank rows."""

  def search(bank, rows):
    queries = memory_bank.gather((bank.image, bank.text), rows, mesh=mesh)
    _, found = memory_bank.search(bank, queries, count, mesh=mesh, anchor=anchor)
    return found.astype(jnp.int32)

  return jax.jit(search, out_shardings=sharding.replicated(mesh))


def _read(path, epoch):
  try:
    with np.load(path) as file:
      if int(file["epoch"]) == epoch:
        return file["order"]
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f"{path} cannot be read ({error}); delete the newest checkpoint") from error
  raise UserError(f"{path} is of another epoch; delete the newest checkpoint")
