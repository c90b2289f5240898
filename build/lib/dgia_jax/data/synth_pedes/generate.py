"""The whole dataset as an iterator of plain records, drawn by one or several processes.

Needs NumPy and Pillow only: the TFDS builder is one user of `generate`, a program that wants the
data in memory is another. Records are the same, in the same order, whatever the number of workers.
"""

import os
import pickle
import signal
import subprocess
import sys

import numpy as np

from dgia_jax.data.synth_pedes import cameras, captions, drawing
from dgia_jax.data.synth_pedes.people import sample_person

_CHUNK = 25  # people that a worker draws at a time: a fifth of a second of work
_WORKERS_FROM = 500  # images; below this, starting processes costs more than it saves


def generate(settings, split, workers=None, people=None):
  """Draws a split, or some of its people.

  Args:
    settings: `Settings`.
    split: "train", "val" or "test".
    workers: processes to draw with; 0 draws in this one. None: one per core (at most 8) where the
      split is large enough to gain from it.
    people: numbers of the people to draw, a range; None: all of the split.

  Returns:
    An iterator over one record per image, ordered by person: {"image": uint8 (H, W, 3), "captions":
    list of str, "person_id": int, "image_path": str, unique in the dataset}.

  Raises:
    UserError: for an unknown split.
  """
  numbers = settings.people(split) if people is None else people
  if workers is None:
    few = len(numbers) * settings.images_per_person < _WORKERS_FROM
    workers = 0 if few else min(8, _cores())
  chunks = [numbers[i : i + _CHUNK] for i in range(0, len(numbers), _CHUNK)]
  return _generate(settings, split, chunks, min(workers, len(chunks)))


def draw_person(settings, split, number):
  """The records of one person, see `generate`; pure in its arguments."""
  person = sample_person(settings.seed, number, settings.variety)
  records = []
  for index, view in enumerate(cameras.sample_views(settings, number)):
    image_HxWx3, seen = drawing.draw(person, view, settings.height, settings.width)
    sentences = []
    for caption in range(settings.captions_per_image):
      rng = np.random.default_rng([settings.seed, number, 4, index, caption])
      sentences.append(captions.write(captions.choose(person, seen, settings, rng), rng))
    records.append(
      {
        "image": image_HxWx3,
        "captions": sentences,
        "person_id": number,
        "image_path": f"{split}/{number:07d}_{index}.png",
      }
    )
  return records


def _generate(settings, split, chunks, workers):
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


def _start_worker(task):
  """A fresh Python that draws and knows nothing of this one.

  Not `multiprocessing`: a fork of a process that runs JAX's threads can hang, and a spawned process
  imports the caller's main module again, with JAX and all that belongs to it.
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
  with process.stdin as pipe:
    pickle.dump(task, pipe)
  return process


def _work():
  """What a worker does: reads its task from stdin, writes one pickled chunk after the other."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent ends its workers
  settings, split, chunks = pickle.load(sys.stdin.buffer)
  for chunk in chunks:
    records = [record for number in chunk for record in draw_person(settings, split, number)]
    try:
      pickle.dump(records, sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
      sys.stdout.buffer.flush()
    except BrokenPipeError:  # the parent is gone
      os._exit(1)


def _next_chunk(process):
  try:
    return pickle.load(process.stdout)
  except (EOFError, pickle.UnpicklingError) as error:
    raise RuntimeError(f"a process drawing synth_pedes died (code {process.wait()})") from error


def _cores():
  """CPU cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
