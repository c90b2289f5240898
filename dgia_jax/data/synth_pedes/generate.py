"""The dataset as an iterator of plain records, drawn by one or several processes.

It needs only NumPy and Pillow, so that programs without TFDS can have the data in memory. The
number of processes changes neither the records nor their order.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dgia_jax.data.synth_pedes import cameras, captions, drawing
from dgia_jax.data.synth_pedes.annotators import annotator_of
from dgia_jax.data.synth_pedes.people import sample_person
from dgia_jax.data.synth_pedes.settings import Settings
from dgia_jax.errors import UserError

_CHUNK = 25  # people that a worker draws at a time: work for a fifth of a second
_WORKERS_FROM = 500  # images; for fewer, starting processes costs more than it saves

Record = dict[str, Any]


def generate(
  settings: Settings, split: str, workers: int | None = None, people: range | None = None
) -> Iterator[Record]:
  """Draws a split, or some of its people.

  Args:
    settings: of the dataset.
    split: "train", "val" or "test".
    workers: processes that draw; 0 draws in this one. None uses one per core (at most 8), if the
      split is large enough to gain from it.
    people: numbers of the people to draw; None for the whole split.

  Returns:
    An iterator over one record per image, ordered by person: {"image": uint8 (H, W, 3), "captions":
    list of str, "person_id": int, "image_path": str, unique in the dataset}. It raises a UserError
    if a process is killed.

  Raises:
    UserError: unknown split.
  """
  numbers = settings.people(split) if people is None else people
  if workers is None:
    few = len(numbers) * settings.images_per_person < _WORKERS_FROM
    workers = 0 if few else min(8, _cores())
  chunks = [numbers[i : i + _CHUNK] for i in range(0, len(numbers), _CHUNK)]
  return _generate(settings, split, chunks, min(workers, len(chunks)))


def draw_person(settings: Settings, split: str, number: int) -> list[Record]:
  """Draws the records of one person, see `generate`; deterministic."""
  person = sample_person(settings.seed, number, settings.variety)
  records = []
  for index, view in enumerate(cameras.sample_views(settings, number)):
    image_HxWx3, seen = drawing.draw(person, view, settings.height, settings.width)
    sentences = []
    for caption in range(settings.captions_per_image):
      rng = np.random.default_rng([settings.seed, number, 4, index, caption])
      annotator = annotator_of(settings, number, index, caption)
      mentions = captions.choose(person, seen, settings, rng, annotator)
      sentences.append(captions.write(mentions, rng, annotator))
    records.append(
      {
        "image": image_HxWx3,
        "captions": sentences,
        "person_id": number,
        "image_path": f"{split}/{number:07d}_{index}.png",
      }
    )
  return records


def _generate(
  settings: Settings, split: str, chunks: Sequence[range], workers: int
) -> Iterator[Record]:
  if not workers:
    for chunk in chunks:
      for number in chunk:
        yield from draw_person(settings, split, number)
    return
  processes = []
  try:
    for worker in range(workers):
      processes.append(_start_worker((settings, split, chunks[worker::workers])))
    for index in range(len(chunks)):
      yield from _next_chunk(processes[index % workers])
  finally:
    for process in processes:
      process.kill()
      process.wait()
      process.stdout.close()


def _start_worker(task: tuple[Settings, str, Sequence[range]]) -> subprocess.Popen:
  """Starts a new Python process that draws.

  `multiprocessing` is no option: a fork of a process with JAX's threads can hang, and a spawned
  process imports the caller's main module again, and with it JAX.
  """
  root = os.path.abspath(__file__)
  for _ in __name__.split("."):
    root = os.path.dirname(root)
  path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
  process = subprocess.Popen(
    [sys.executable, "-c", f"from {__name__} import _work; _work()"],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    env={**os.environ, "PYTHONPATH": path},
  )
  # Of a process that has died already, `_next_chunk` reports the exit code.
  with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
    pickle.dump(task, pipe)
  return process


def _work() -> None:
  """Runs in a worker: reads its task from stdin and writes one pickled chunk after the other."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # after Ctrl-C the parent ends its workers
  settings, split, chunks = pickle.load(sys.stdin.buffer)
  for chunk in chunks:
    records = [record for number in chunk for record in draw_person(settings, split, number)]
    try:
      pickle.dump(records, sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
      sys.stdout.buffer.flush()
    except BrokenPipeError:  # the parent has ended
      os._exit(1)


def _next_chunk(process: subprocess.Popen) -> list[Record]:
  try:
    return pickle.load(process.stdout)
  except (EOFError, pickle.UnpicklingError) as error:
    raise UserError(
      f"a process that draws synth_pedes was killed (exit code {process.wait()}), often because the"
      " memory is full: start again"
    ) from error


def _cores() -> int:
  """Number of CPU cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
