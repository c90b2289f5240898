"""A run small enough for a test: 24 training images in memory, two-block towers, no dataset."""

import copy
import json
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import synth_pedes
from dgia_jax.data.pairs import PairTable
from dgia_jax.models import dual_encoder
from tests.helpers import settings

SIZE = dual_encoder.Size(
  dual_encoder.TowerSize(32, 2, 2), dual_encoder.TowerSize(32, 2, 2), feature_width=16, patch_size=8
)
WORDS = "red blue green black white coat shirt jeans skirt hat bag shoes".split()


def splits(people: int = 12, seed: int = 0) -> dict[str, PairTable]:
  """Returns "train", "val" and "test" pairs of coloured noise and random words.

  There are 36 training pairs, not a multiple of the batch size. Some images have two captions.
  """
  rng = np.random.default_rng(seed)

  def table(first, count):
    images, captions, persons = [], [], []
    for person in range(first, first + count):
      colour, own_words = rng.integers(0, 200, 3), rng.choice(WORDS, 3, replace=False)
      for view in range(2):
        noise = rng.integers(0, 50, (16, 16, 3))
        images.append((colour + noise).astype(np.uint8))
        captions.append([" ".join(rng.permutation(own_words)) for _ in range(1 + view)])
        persons.append(person)
    return PairTable.from_arrays(np.stack(images), captions, persons)

  return {"train": table(0, people), "val": table(100, 6), "test": table(200, 6)}


def config(**fields: Any) -> ConfigDict:
  """Returns a config for `splits`: batch 8, 3 epochs of 5 steps, global loss from epoch 2.

  Args:
    **fields: replace settings; "__" stands for the dot, as in `mesh__data=8`.
  """
  dual_encoder.SIZES["test_size"] = SIZE
  chosen = synth_pedes.get_config("small")
  chosen.model.name = "test_size"
  chosen.dataset.image_size = (16, 16)
  chosen.tokenizer.vocab_size = 300
  chosen.tokenizer.context_length = 8
  chosen.batch_size = 8
  chosen.num_epochs = 3
  chosen.log_every_steps = 2
  chosen.eval.batch_size = 8
  chosen.eval.contact_sheet = False
  chosen.augment.padding = 2
  chosen.mesh.data = 1
  chosen.local_association.start_epoch = 1
  chosen.global_association.start_epoch = 2
  with chosen.unlocked():
    settings.change(chosen, **fields)
  return copy.deepcopy(chosen)


def metrics(workdir: pathlib.Path | str) -> list[dict]:
  """Returns the lines of metrics.jsonl."""
  text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]
