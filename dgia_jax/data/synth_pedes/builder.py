"""The TFDS builder of synth_pedes: stores the records of `generate` as ArrayRecord files."""

import dataclasses
import functools
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from PIL import Image

from dgia_jax.data.synth_pedes.generate import Record, generate
from dgia_jax.data.synth_pedes.settings import PRESETS, Settings
from dgia_jax.errors import UserError

_SHARD_IMAGES = 4096


@dataclasses.dataclass(eq=False)
class SynthPedesConfig(tfds.core.BuilderConfig):
  """A TFDS config with `Settings`; both have the same name."""

  settings: Settings = dataclasses.field(default_factory=Settings)


def _config(settings: Settings) -> SynthPedesConfig:
  return SynthPedesConfig(
    name=settings.name,
    description=f"Drawn pedestrians: {settings}",
    settings=settings,
  )


class SynthPedes(tfds.core.ShardBasedBuilder):
  """Drawn pedestrians with captions; one example per image, ordered by person.

  Splits share no person. Shard-based, because TFDS's shuffling writer needs TensorFlow as soon as a
  split is larger than its memory buffer. The input pipeline shuffles anyway.
  """

  name = "synth_pedes"
  # Increase it when a default changes: folder names list only differences from the defaults.
  VERSION = tfds.core.Version("1.3.0")
  RELEASE_NOTES = {
    "1.0.0": "First release.",
    "1.1.0": "Images are stored person by person.",
    "1.2.0": "Six images of each person.",
    "1.3.0": "2,700 training people by default.",
  }
  BUILDER_CONFIGS = [_config(settings) for settings in PRESETS.values()]

  # Nothing is downloaded. Without this TFDS looks for a list of checksums, and for that tfds 4.9.10
  # imports a package that it does not install (importlib_resources).
  url_infos = None
  workers: int | None = None  # processes that draw, see `generate`; they do not change the data

  def _info(self) -> tfds.core.DatasetInfo:
    settings = self.builder_config.settings
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(
            shape=(settings.height, settings.width, 3), encoding_format="png"
          ),
          "captions": tfds.features.Sequence(tfds.features.Text()),
          "person_id": np.int64,
          "image_path": tfds.features.Text(),
        }
      ),
      description="Procedurally drawn pedestrians for text-to-person retrieval.",
    )

  def _shard_iterators_per_split(self, dl_manager: object) -> dict[str, list[Callable]]:
    del dl_manager  # nothing to download
    settings = self.builder_config.settings
    step = max(_SHARD_IMAGES // settings.images_per_person, 1)
    shards = {}
    for split in settings.splits:
      people = settings.people(split)
      parts = [people[start : start + step] for start in range(0, len(people), step)]
      shards[split] = [functools.partial(self._examples, split, part) for part in parts]
    return shards

  def _examples(self, split: str, people: range) -> Iterator[tuple[str, Record]]:
    """Yields the examples of one shard, with a progress bar on a terminal."""
    settings = self.builder_config.settings
    records = tqdm.tqdm(
      generate(settings, split, self.workers, people),
      desc=f"drawing {split} people {people.start} to {people.stop - 1}",
      total=len(people) * settings.images_per_person,
      unit=" images",
      disable=None,
      delay=1.0,
    )
    for record in records:
      # PNG bytes, because TFDS encodes arrays with TensorFlow.
      yield record["image_path"], {**record, "image": _png(record["image"])}


def make_builder(
  data_dir: str | None = None, preset: str = "default", workers: int | None = None, **overrides: Any
) -> SynthPedes:
  """Returns the builder of a preset with some settings changed.

  The name of its config follows from the settings that differ from the default, so different data
  never share a folder.

  Args:
    data_dir: root folder of TFDS datasets; None for ~/tensorflow_datasets.
    preset: a key of `PRESETS`.
    workers: processes that draw, see `generate`.
    **overrides: fields of `Settings`.

  Raises:
    UserError: an unknown preset or setting, or a value out of range.
  """
  if preset not in PRESETS:
    raise UserError(f"synth_pedes has no preset {preset!r}: choose from {', '.join(PRESETS)}")
  settings = PRESETS[preset].replace(**overrides)
  known = {config.name: config for config in SynthPedes.BUILDER_CONFIGS}
  config = known.get(settings.name) or _config(settings)
  builder = SynthPedes(config=config, data_dir=data_dir, file_format="array_record")
  builder.workers = workers
  return builder


def _png(image_HxWx3: np.ndarray) -> io.BytesIO:
  """A file object with an image as PNG, compressed fast rather than well."""
  file = io.BytesIO()
  Image.fromarray(image_HxWx3).save(file, "png", compress_level=1)
  file.seek(0)
  return file
