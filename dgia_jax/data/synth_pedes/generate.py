"""The whole dataset as an iterator of plain records, on one or several processes.

Needs NumPy and Pillow only: the TFDS builder is one user of `generate`, a program that wants the
data in memory is another. Records are the same, in the same order, whatever the number of workers.
"""

import collections
import concurrent.futures.process
import multiprocessing
import os

import numpy as np

from dgia_jax.data.synth_pedes import cameras, captions, drawing
from dgia_jax.data.synth_pedes.people import sample_person
from dgia_jax.errors import UserError

_CHUNK = 50  # people per task: about half a second of work
_POOL_FROM = 300  # images; below this the start of processes costs more than it saves


def generate(settings, split, workers=None):
  """Draws a split.

  Args:
    settings: `Settings`.
    split: "train", "val" or "test".
    workers: processes to draw with; 0 draws in this process, None takes the machine's cores (at
      most 8) where the split is large enough to gain from it.

  Yields:
    One record per image, ordered by person: {"image": uint8 (H, W, 3), "captions": list of str,
    "person_id": int, "image_path": str, unique}.

  Raises:
    UserError: for an unknown split, or when the processes can't be started.
  """
  numbers = settings.people(split)  # raises here and now, not at the first record
  if workers is None:
    few = len(numbers) * settings.images_per_person < _POOL_FROM
    workers = 0 if few else min(8, _cores())
  return _generate(settings, split, numbers, workers)


def draw_person(settings, split, number):
  """The records of one person; pure in its arguments."""
  person = sample_person(settings.seed, number, settings.variety)
  records = []
  for index, view in enumerate(cameras.sample_views(settings, number)):
    image_HxWx3, seen = drawing.draw(person, view, settings.height, settings.width)
    sentences = []
    for caption in range(settings.captions_per_image):
      rng = np.random.default_rng([settings.seed, number, 4, index, caption])
      sentences.append(captions.write(captions.choose(person, seen, settings, rng), rng))
    path = f"{split}/{number:07d}_{index}.png"
    records.append(
      {"image": image_HxWx3, "captions": sentences, "person_id": number, "image_path": path}
    )
  return records


def _draw_people(settings, split, numbers):
  return [record for number in numbers for record in draw_person(settings, split, number)]


def _generate(settings, split, numbers, workers):
  chunks = [numbers[i : i + _CHUNK] for i in range(0, len(numbers), _CHUNK)]
  if not workers:
    for chunk in chunks:
      yield from _draw_people(settings, split, chunk)
    return
  # Spawned, not forked: a fork of a process that runs JAX's threads can hang.
  pool = concurrent.futures.ProcessPoolExecutor(
    min(workers, len(chunks)), mp_context=multiprocessing.get_context("spawn")
  )
  try:
    running = collections.deque()
    for chunk in chunks:
      running.append(pool.submit(_draw_people, settings, split, chunk))
      if len(running) > 3 * workers:  # bounds what waits in memory
        yield from running.popleft().result()
    while running:
      yield from running.popleft().result()
  except concurrent.futures.process.BrokenProcessPool as error:
    raise UserError(
      "synth_pedes: a drawing process died. Out of memory? A script that draws at import time needs "
      'an `if __name__ == "__main__":` around it; workers=0 draws in one process'
    ) from error
  finally:
    pool.shutdown(cancel_futures=True)


def _cores():
  """CPU cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
