"""Who is on the images of an index, so that correct results of a known query can be marked.

Identities and captions come from the annotations of a dataset. They mark results and give example
queries; no search depends on them.
"""

import collections
import functools
import os
import pathlib
from collections.abc import Sequence

from dgia_jax.data import dataset_files
from dgia_jax.errors import UserError
from dgia_jax.search.index_files import AnnotatedImage

NUM_EXAMPLES = 3


def read_annotations(file: str, images: pathlib.Path | str) -> list[AnnotatedImage]:
  """The annotated images of a folder.

  Args:
    file: annotations in one of the forms of `data.annotation_formats`.
    images: the folder that is indexed.

  Raises:
    UserError: the file cannot be read, has faulty entries, or names no image of the folder.
  """
  images = os.path.abspath(images)
  dataset = dataset_files.open_dataset("custom", annotations=file, images=images)
  if dataset.annotations.errors:
    raise UserError(f"--annotations={file}: {dataset.annotations.errors[0]}")
  records = dataset.annotations.records
  images_of = collections.Counter(record.person for record in records)
  # An image without an id has a number of its own, so its other pictures cannot be known.
  least = {"known": 1, "partly known": 2, "unknown": len(records) + 1}
  least_images = least[dataset.annotations.identities]
  rows = []
  for record, path in zip(records, dataset.paths, strict=True):
    if path is not None:
      relative = _relative(path, images)
      if os.path.islink(path):  # the image itself is named where the folder has it
        real = _relative(os.path.realpath(path), os.path.realpath(images))
        relative = relative if real.startswith("../") else real
      person = record.person if images_of[record.person] >= least_images else None
      rows.append(AnnotatedImage(relative, person, list(record.captions)))
  if not rows:
    raise UserError(f"--annotations={file}: names no image in {images}")
  return rows


class Identities:
  """What an index knows about its images.

  Attributes:
    examples: a few captions.
  """

  def __init__(self, annotated: Sequence[AnnotatedImage], images: pathlib.Path | str):
    """`annotated` are images in the folder `images`."""
    self._images = os.path.realpath(images)
    self._real_folder = functools.cache(self._real_folder)  # many images are in one folder
    self._person_of_path = {self._without_links(image.path): image.person for image in annotated}
    self._people_of_caption = collections.defaultdict(set)
    for image in annotated:
      for caption in image.captions:
        self._people_of_caption[_plain(caption)].add(image.person)
    # Images that are far from each other in the list show different people.
    step = max(1, len(annotated) // NUM_EXAMPLES)
    captions = [image.captions[0] for image in annotated[step // 2 :: step]]
    self.examples = tuple(dict.fromkeys(captions))[:NUM_EXAMPLES]

  def correct(
    self,
    texts: Sequence[str],
    files: Sequence[str | os.PathLike | None],
    results: Sequence[Sequence[str | os.PathLike]],
  ) -> list[bool] | None:
    """Which results show the person that a query asks for; None if that is not known.

    It is known if every text is a caption of the dataset and every image one of its images. A
    caption of several people asks for any of them, and a query of several parts for a person that
    all of them show.

    Args:
      texts: descriptions of the query.
      files: images of the query; None for one that is no file of this machine.
      results: per result, the files that show its picture.
    """
    parts = [self._people_of_caption.get(_plain(text), set()) for text in texts]
    parts += [set() if file is None else {self._person(file)} for file in files]
    people = set.intersection(*parts) - {None} if parts else set()
    if not people:
      return None
    return [any(self._person(file) in people for file in shown) for shown in results]

  def _person(self, file: str | os.PathLike) -> int | None:
    folder, name = os.path.split(os.path.abspath(file))
    for path in (os.path.join(os.path.realpath(folder), name), os.path.realpath(file)):
      person = self._person_of_path.get(_relative(path, self._images))
      if person is not None:
        return person
    return None

  def _without_links(self, path: str) -> str:
    """A path below the folder of images as `_person` looks it up: no folder in it is a link."""
    folder, _, name = path.rpartition("/")
    real = self._real_folder(folder)
    return path if real == folder else f"{real}/{name}".removeprefix("./")

  def _real_folder(self, folder: str) -> str:
    return _relative(os.path.realpath(os.path.join(self._images, folder)), self._images)


def _relative(path: str, folder: str) -> str:
  """The path from a folder on, with forward slashes."""
  return os.path.relpath(path, folder).replace(os.sep, "/")


def _plain(text: str) -> str:
  """A caption without the differences that do not matter: case and spaces."""
  return " ".join(text.lower().split())
