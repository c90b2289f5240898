"""Finding the image files below a folder."""

import collections
import dataclasses
import functools
import os
import pathlib

from PIL import Image

from dgia_jax.data import folder_walk
from dgia_jax.data import images as images_lib
from dgia_jax.errors import UserError

# Image types that are counted when they are not decoded here.
_OTHER_IMAGE_TYPES = {
  ".arw", ".avif", ".cr2", ".cr3", ".dng", ".emf", ".eps", ".heic", ".heif", ".jxl", ".nef",
  ".orf", ".raf", ".rw2", ".svg", ".wmf",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFile:
  """An image file below a folder. Its size and times show cheaply that it has not changed."""

  path: str  # relative to the folder, with forward slashes
  size: int  # bytes
  modified_ns: int
  changed_ns: int  # of the inode: restoring a file can reset `modified_ns`, but not this


@dataclasses.dataclass(frozen=True)
class Listing:
  """The image files below a folder.

  Attributes:
    files: sorted by path.
    unsupported: suffix -> number of images of types that are not decoded here.
    unreadable: (path, reason) of folders that cannot be listed, and of files that cannot be found.
  """

  files: list[ImageFile]
  unsupported: dict[str, int]
  unreadable: list[tuple[str, str]]

  def hides(self, path: str) -> bool:
    """Whether a file that is not listed may be there: it, or a folder above it, is unreadable."""
    folders = [path[:end] for end, letter in enumerate(path) if letter == "/"]
    return not self._hidden.isdisjoint([".", *folders, path])

  @functools.cached_property
  def _hidden(self) -> frozenset[str]:
    return frozenset(path for path, _ in self.unreadable)


def list_images(folder: pathlib.Path | str) -> Listing:
  """Lists the images below a folder. Links are followed; each folder is visited once.

  Raises:
    UserError: there is no such folder.
  """
  if not os.path.isdir(folder):
    raise UserError(f"--images={folder}: no such folder")
  decoded = images_lib.decoded_formats()
  types = {suffix for suffix, name in Image.registered_extensions().items() if name in decoded}
  files, unsupported, unreadable = [], collections.Counter(), []

  def report(error: OSError) -> None:
    path = os.path.relpath(error.filename, folder).replace(os.sep, "/")
    unreadable.append((path, error.strerror or str(error)))

  for parent, names in folder_walk.walk(str(folder), report):
    for name in names:
      suffix = os.path.splitext(name)[1].lower()
      if suffix in types:
        path = os.path.join(parent, name)
        relative = os.path.relpath(path, folder).replace(os.sep, "/")
        try:
          status = os.stat(path)
        except OSError as error:
          unreadable.append((relative, error.strerror or str(error)))
          continue
        if os.path.isfile(path):
          files.append(ImageFile(relative, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
      elif suffix in _OTHER_IMAGE_TYPES:
        unsupported[suffix] += 1
  return Listing(sorted(files, key=lambda file: file.path), dict(unsupported), unreadable)
