"""Datasets by name: from the settings of a config to a built dataset, ready to be read.

Builders are imported on use, so that a package missing for one dataset does not affect another.
"""

import os
import shlex
from collections.abc import Mapping
from typing import Any

from absl import logging

from dgia_jax import bucket, cli, remote, user_files, worker_processes
from dgia_jax.data import catalog
from dgia_jax.errors import UserError, printable


def names() -> tuple[str, ...]:
  """All datasets: the built-in one, and those in `catalog.LAYOUTS`."""
  return ("synth_pedes", *catalog.LAYOUTS)


def load_builder(
  name: str,
  *,
  data_dir: str = "",
  source: str = "",
  annotations: str = "",
  images: str = "",
  image_size: tuple[int, int] | None = None,
  **options: Any,
) -> Any:
  """Returns the TFDS reader of a dataset, which is built first if it is absent.

  Args:
    name: one of `names()`.
    data_dir: root of the built datasets; "" = $TFDS_DATA_DIR or ~/tensorflow_datasets. A dataset
      in a bucket is copied to the local cache first, because its record files are read locally.
    source: the folder with the dataset's files. "" = use the build in `data_dir`, if only one
      matches.
    annotations, images: the JSON file and the image folder, for `custom` or an unusual layout.
    image_size: (height, width) in pixels at which synth_pedes is drawn. Image files are stored as
      they are, and resized when they are read.
    **options: of the builder. For the person datasets `holdout` (number of train people to move to
      val), `skip_unreadable` and `workers`, see `tfds_builder.build`, and `allow_outside`, see
      `dataset_files.open_dataset`; for synth_pedes its settings.

  Returns:
    A `tfds.core.DatasetBuilder` with the splits "train", "val" and "test" that exist.

  Raises:
    UserError: unknown name or option, missing or faulty files.
  """
  worker_processes.leave_if_work_is_repeated()
  check_name(name)
  data_dir = resolved_data_dir(data_dir)
  if bucket.is_remote(data_dir):
    data_dir = _copied_data_dir(name, data_dir)
  if name == "synth_pedes":
    return _load_synth_pedes(data_dir, image_size, options)
  options = _person_search_options(name, options)
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
      printable(skipped[0]),
    )
  return builder


def check_name(name: str) -> None:
  """Raises UserError unless `name` is a known dataset."""
  if name not in names():
    raise UserError(f"no dataset {name!r}: the datasets are {', '.join(names())}")


def resolved_data_dir(data_dir: str) -> str:
  """The absolute path, or the address in a bucket, of the root of built datasets.

  Raises:
    UserError: the path is the home of an unknown user, or not UTF-8, which the record writer needs.
  """
  data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  if bucket.is_remote(data_dir):
    bucket.check(data_dir, "data_dir")
    return data_dir.rstrip("/")
  path = os.path.abspath(user_files.expanded(data_dir, "data_dir"))
  try:
    path.encode()
  except UnicodeEncodeError as error:
    raise UserError(f"data_dir {path} is not UTF-8: choose another data_dir") from error
  return path


def prepare_command(
  name: str, data_dir: str, holdout: int = 0, files: Mapping[str, str] | None = None
) -> str:
  """The command line that builds a dataset of image files."""
  given = {flag: value for flag, value in (files or {}).items() if value} or {"source": "FOLDER"}
  flags = {**given, "data_dir": data_dir}
  if holdout:
    flags["holdout"] = holdout
  words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
  return f"{cli.program('data')} prepare {name} {shlex.join(words)}"


def _copied_data_dir(name: str, data_dir: str) -> str:
  """The root of a local copy of one dataset in a bucket.

  Raises:
    UserError: the dataset is not built there, or cannot be copied.
  """
  if not bucket.holds_files(f"{data_dir}/{name}", "data_dir"):
    source = " --source FOLDER" if name in catalog.LAYOUTS else ""
    command = f"{cli.program('data')} prepare {name}{source} --data_dir DIR"
    raise UserError(
      f"{name} is not built in data_dir={data_dir}: datasets are built in local folders; build it"
      f" ({command}), then copy it: gcloud storage rsync -r DIR/{name} {data_dir}/{name}"
    )
  return str(remote.local_copy(f"{data_dir}/{name}", "data_dir").parent)


def _person_search_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """The options with their defaults; raises UserError for an unknown or impossible one."""
  defaults = dict(allow_outside=False, holdout=0, skip_unreadable=False, workers=0)
  for option, value in options.items():
    if option not in defaults:
      raise UserError(f"{name} has no option {option!r}: choose from {', '.join(defaults)}")
    kind = type(defaults[option])
    if type(value) is not kind or (kind is int and value < 0):
      needed = "True or False" if kind is bool else "a number, 0 for none"
      raise UserError(f"{option}={value!r}: give {needed}")
  return {**defaults, **options}


def _load_from_files(
  name: str, data_dir: str, files: Mapping[str, str], options: Mapping[str, Any]
) -> Any:
  from dgia_jax.data import dataset_files, tfds_builder

  options = dict(options)
  allow_outside = options.pop("allow_outside")
  try:
    opened = dataset_files.open_dataset(name, **files, allow_outside=allow_outside)
  except UserError as error:
    command = prepare_command(name, data_dir, options["holdout"], files)
    raise UserError(f"{error}. Then: {command}") from error
  return tfds_builder.build(opened, data_dir=data_dir, **options)


def _load_built(name: str, data_dir: str, options: Mapping[str, Any]) -> Any:
  import tensorflow_datasets as tfds

  from dgia_jax.data import tfds_builder

  built = tfds_builder.find_built(name, data_dir=data_dir, holdout=options["holdout"])
  if len(built) > 1:
    raise UserError(
      f"{name}: {len(built)} builds from different files in {data_dir} "
      f"({', '.join(os.path.basename(os.path.dirname(path)) for path in built)}): "
      "give source to say which, or delete the others"
    )
  if not built:
    command = prepare_command(name, data_dir, options["holdout"])
    raise UserError(
      f"{name} is not built in {data_dir} with these settings: set source to the folder of its "
      f"files, or build it: {command}"
    )
  return tfds.builder_from_directory(built[0])


def _load_synth_pedes(
  data_dir: str, image_size: tuple[int, int] | None, options: Mapping[str, Any]
) -> Any:
  from dgia_jax.data import locked_build
  from dgia_jax.data.synth_pedes import builder as synth_pedes

  size = dict(zip(("height", "width"), image_size or (), strict=False))
  with locked_build.quiet_tfds():
    builder = synth_pedes.make_builder(data_dir=data_dir, **size, **options)
  return locked_build.prepare(builder)
