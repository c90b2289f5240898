"""Datasets by name: from what a config says to a built dataset, ready to read.

Builders are imported when asked for, so that one dataset's needs never stop another.
"""

import os

from absl import logging

from dgia_jax.data import catalog
from dgia_jax.errors import UserError


def names() -> tuple[str, ...]:
  """Of all datasets: the embedded one, and those that `layouts` describes."""
  return ("synth_pedes", *catalog.LAYOUTS)


def load_builder(
  name: str,
  *,
  image_size: tuple[int, int],
  data_dir: str = "",
  source: str = "",
  annotations: str = "",
  images: str = "",
  **options,
):
  """A dataset's TFDS reader; the dataset is built first when it is not there.

  Args:
    name: one of `names()`.
    image_size: (height, width) in pixels.
    data_dir: root of the built datasets; "" = $TFDS_DATA_DIR or ~/tensorflow_datasets.
    source: the folder with the dataset's files. "" = use what is built, if it is unambiguous.
    annotations, images: the JSON file and the image folder, for `custom` or an unusual layout.
    **options: of the builder. For the person datasets `holdout` (train people to set apart as
      val), `encoding` ("jpeg" or "png"), `skip_unreadable` and `workers`, see
      `person_search.build`; for synth_pedes its settings.

  Returns:
    A `tfds.core.DatasetBuilder` with splits "train", "val", "test" (those that exist).

  Raises:
    UserError: unknown name or option, missing or faulty files.
  """
  check_name(name)
  data_dir = resolved_data_dir(data_dir)
  if name == "synth_pedes":
    return _load_synth_pedes(data_dir, image_size, options)
  options = {"image_size": image_size, **_person_search_options(name, options)}
  files = {"source": source, "annotations": annotations, "images": images}
  if any(files.values()):
    builder = _load_from_files(name, data_dir, files, options)
  else:
    builder = _load_built(name, data_dir, options)
  skipped = builder.info.metadata["skipped"]
  if skipped:
    logging.warning(
      "%s was built without %d images that could not be read, such as %s",
      name,
      len(skipped),
      skipped[0],
    )
  return builder


def check_name(name: str):
  """Raises UserError unless `name` is a known dataset."""
  if name not in names():
    raise UserError(f"no dataset {name!r}: the datasets are {', '.join(names())}")


def resolved_data_dir(data_dir: str) -> str:
  """Absolute path of the root of built datasets."""
  data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return os.path.abspath(os.path.expanduser(data_dir))


def prepare_command(
  name: str,
  data_dir: str,
  image_size: tuple[int, int],
  holdout: int = 0,
  files: dict[str, str] | None = None,
) -> str:
  """The command line that builds a dataset."""
  given = {flag: value for flag, value in (files or {}).items() if value} or {"source": "FOLDER"}
  flags = {**given, "data_dir": data_dir, "image_size": "x".join(map(str, image_size))}
  if holdout:
    flags["holdout"] = holdout
  words = " ".join(f"--{flag} {value}" for flag, value in flags.items())
  return f"python -m dgia_jax.data prepare {name} {words}"


def _person_search_options(name: str, options: dict) -> dict:
  defaults = dict(holdout=0, encoding="jpeg", skip_unreadable=False, workers=0)
  for option in options:
    if option not in defaults:
      raise UserError(f"{name} has no option {option!r}: choose from {', '.join(defaults)}")
  merged = {**defaults, **options}
  if merged["encoding"] not in ("jpeg", "png"):
    raise UserError(f"encoding={merged['encoding']!r}: choose jpeg or png")
  if isinstance(merged["holdout"], bool) or merged["holdout"] < 0:
    raise UserError(f"holdout={merged['holdout']!r}: give a number of train people, 0 for none")
  return merged


def _load_from_files(name: str, data_dir: str, files: dict, options: dict):
  from dgia_jax.data import dataset_files, tfds_builder

  try:
    opened = dataset_files.open_source(name, **files)
  except UserError as error:
    command = prepare_command(name, data_dir, options["image_size"], options["holdout"], files)
    raise UserError(f"{error}. Then: {command}") from error
  return tfds_builder.build(opened, data_dir=data_dir, **options)


def _load_built(name: str, data_dir: str, options: dict):
  import tensorflow_datasets as tfds

  from dgia_jax.data import tfds_builder

  search = {key: options[key] for key in ("image_size", "encoding", "holdout")}
  built = tfds_builder.find_built(name, data_dir=data_dir, **search)
  if len(built) > 1:
    raise UserError(
      f"{name}: {len(built)} builds from different files in {data_dir} "
      f"({', '.join(os.path.basename(os.path.dirname(path)) for path in built)}): "
      "give source to say which, or delete the others"
    )
  if not built:
    command = prepare_command(name, data_dir, options["image_size"], options["holdout"])
    raise UserError(
      f"{name} is not built in {data_dir} with these settings: set source to the folder of its "
      f"files, or build it: {command}"
    )
  return tfds.builder_from_directory(built[0])


def _load_synth_pedes(data_dir, image_size, options):
  from dgia_jax.data import locked_build
  from dgia_jax.data.synth_pedes import builder as synth_pedes

  height, width = image_size
  with locked_build.quiet_tfds():
    builder = synth_pedes.make_builder(data_dir=data_dir, height=height, width=width, **options)
  return locked_build.prepare(builder)
