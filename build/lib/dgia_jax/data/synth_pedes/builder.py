"""The TFDS builder of synth_pedes: the records of `generate`, stored once as ArrayRecord."""

import dataclasses
import functools
import io

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from PIL import Image

from dgia_jax.data.synth_pedes.generate import generate
from dgia_jax.data.synth_pedes.settings import PRESETS, Settings
from dgia_jax.errors import UserError

_SHARD_IMAGES = 4096


@dataclasses.dataclass(eq=False)
class SynthPedesConfig(tfds.core.BuilderConfig):
  """A TFDS config that holds `Settings`; its name always is the settings' own name."""

  settings: Settings = dataclasses.field(default_factory=Settings)


def _config(settings):
  return SynthPedesConfig(
    name=settings.name,
    description=f"Drawn pedestrians: {settings}",
    settings=settings,
  )


class SynthPedes(tfds.core.ShardBasedBuilder):
  """Drawn pedestrians with captions; one example per image, person by person.

  Splits share no person. Shard-based, because TFDS's shuffling writer needs TensorFlow as soon as a
  split is larger than its memory buffer; the input pipeline shuffles anyway.
  """

  name = "synth_pedes"
  # To be raised with every default: folders are named by what differs from the defaults.
  VERSION = tfds.core.Version("1.3.0")
  RELEASE_NOTES = {
    "1.0.0": "First release.",
    "1.1.0": "Images are stored person by person.",
    "1.2.0": "Six images of each person.",
    "1.3.0": "2,700 training people by default.",
  }
  BUILDER_CONFIGS = [_config(settings) for settings in PRESETS.values()]

  # Nothing is downloaded. Saying so also spares TFDS the search for a list of checksums, for which
  # tfds 4.9.10 imports a package that nobody installs for it any more (importlib_resources).
  url_infos = None
  workers = None  # processes that draw; see `generate`. Not part of the data, so not of the config.

  def _info(self):
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

  def _shard_iterators_per_split(self, dl_manager):
    del dl_manager  # nothing to download
    settings = self.builder_config.settings
    step = max(_SHARD_IMAGES // settings.images_per_person, 1)
    shards = {}
    for split in settings.splits:
      people = settings.people(split)
      parts = [people[start : start + step] for start in range(0, len(people), step)]
      shards[split] = [functools.partial(self._examples, split, part) for part in parts]
    return shards

  def _examples(self, split, people):
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


def make_builder(data_dir=None, preset="default", workers=None, **overrides):
  """The builder of a preset with some settings changed; `download_and_prepare()` draws it, once.

  Args:
    data_dir: root folder of TFDS datasets; None: the TFDS default (~/tensorflow_datasets).
    preset: name of an entry of `PRESETS`.
    workers: processes to draw with (see `generate`).
    **overrides: fields of `Settings`.

  Returns:
    A `SynthPedes` builder. Its config's name follows from the settings that differ from the
    default, so that different data never share a folder.

  Raises:
    UserError: for an unknown preset or setting, or a value out of range.
  """
  if preset not in PRESETS:
    raise UserError(f"synth_pedes has no preset {preset!r}: choose from {', '.join(PRESETS)}")
  settings = PRESETS[preset].replace(**overrides)
  known = {config.name: config for config in SynthPedes.BUILDER_CONFIGS}
  config = known.get(settings.name) or _config(settings)
  builder = SynthPedes(config=config, data_dir=data_dir, file_format="array_record")
  builder.workers = workers
  return builder


def _png(image_HxWx3):
  """A file object with the lossless PNG of an image; fast rather than small."""
  file = io.BytesIO()
  Image.fromarray(image_HxWx3).save(file, "png", compress_level=1)
  file.seek(0)
  return file
