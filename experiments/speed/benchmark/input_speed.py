"""How many pairs the input pipeline alone can deliver, in all and per core."""

import json
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
from PIL import Image

from dgia_jax.data import batches as batches_lib
from dgia_jax.data import datasets
from dgia_jax.data import pairs as pairs_lib
from dgia_jax.data.pairs import PairTable
from dgia_jax.data.synth_pedes import Settings
from dgia_jax.data.synth_pedes.generate import draw_person

PEOPLE = 40  # of each synthetic dataset: 160 images, 320 pairs
LARGE = (384, 128)
BATCH = 64
TOKENS = 77
_QUALITY = 95


def embedded(folder: pathlib.Path) -> PairTable:
  """The built-in dataset at its own size, few people."""
  few = dict(train_people=PEOPLE, val_people=10, test_people=10)
  builder = datasets.load_builder(
    "synth_pedes", image_size=(64, 32), data_dir=str(folder / "embedded"), **few
  )
  return pairs_lib.load_pairs(builder, "train", (64, 32), "bilinear")


def stored_jpegs(folder: pathlib.Path) -> PairTable:
  """Synthetic people as JPEG files of 384 x 128, built like one's own dataset."""
  images, entries = folder / "images", []
  images.mkdir()
  settings = Settings().replace(height=LARGE[0], width=LARGE[1])
  for number in range(PEOPLE + 2):
    split = "train" if number < PEOPLE else "test"
    for place, record in enumerate(draw_person(settings, "train", number)):
      name = f"{number}_{place}.jpg"
      Image.fromarray(record["image"]).save(images / name, quality=_QUALITY)
      entries.append(
        {"id": number, "img_path": name, "captions": record["captions"], "split": split}
      )
  annotations = folder / "annotations.json"
  annotations.write_text(json.dumps(entries), encoding="utf-8")
  builder = datasets.load_builder(
    "custom",
    image_size=LARGE,
    data_dir=str(folder / "jpeg"),
    annotations=str(annotations),
    images=str(images),
  )
  return pairs_lib.load_pairs(builder, "train", LARGE, "bilinear")


DATASETS = {
  "synth_pedes, 64 x 32, PNG": embedded,
  "synthetic people, 384 x 128, JPEG": stored_jpegs,
}


def pairs_per_second(
  pairs: PairTable, workers: int, seconds: float, batch_size: int = BATCH
) -> dict[str, float]:
  """Drains the training pipeline for some seconds, nothing else running.

  Args:
    pairs: a PairTable.
    workers: processes that decode; 0 decodes in threads of this process.
    seconds: how long, after the first batches.
    batch_size: pairs of a batch.

  Returns:
    {"pairs_per_second", "pairs_per_core_second": pairs per second of processor time spent by this
    process and its workers, "cores": processor time / time}.
  """
  batches = batches_lib.train_batches(
    pairs,
    np.zeros((pairs.num_pairs, TOKENS), np.int32),
    batch_size=batch_size,
    seed=0,
    num_epochs=10**6,
    workers=workers,
  )
  for _ in range(2 * max(workers, 1)):  # until every worker has started
    next(batches)
  count, busy, start = 0, _processor_seconds(), time.perf_counter()
  while time.perf_counter() - start < seconds:
    count += int(next(batches)["mask"].sum())
  spent, busy = time.perf_counter() - start, _processor_seconds() - busy
  batches.close()
  return {
    "pairs_per_second": count / spent,
    "pairs_per_core_second": count / busy,
    "cores": busy / spent,
  }


def _processor_seconds():
  """Seconds of processor time spent so far by this process and those it started and that live."""
  this = psutil.Process()
  total = 0.0
  for process in (this, *this.children(recursive=True)):
    spent = process.cpu_times()
    total += spent.user + spent.system
  return total


def measure(workers: Sequence[int], seconds: float) -> list[dict[str, Any]]:
  """All datasets with all numbers of workers: a list of rows."""
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    for name, draw in DATASETS.items():
      pairs = draw(pathlib.Path(folder))
      for count in workers:
        speed = pairs_per_second(pairs, count, seconds)
        rows.append({"dataset": name, "workers": count, **speed})
  return rows
