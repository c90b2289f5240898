"""Writes images whose content comes from archives: the folder is complete or absent.

Files are written to a temporary folder beside it, which `publish` renames. A picture that comes
several times, such as with each of its captions, is written once.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil

from dgia_jax.data import images
from dgia_jax.errors import UserError


class ImageStore:
  """The images of one folder. Two processes must not write the same folder at the same time."""

  def __init__(self, folder: pathlib.Path) -> None:
    """Touches nothing yet: `folder` may hold files if no image is added."""
    self._folder = folder
    self._partial = folder.with_name(f".{folder.name}.partial")
    self._names: dict[bytes, str] = {}  # by the SHA-256 of the content
    self._has_begun = self._is_published = self._has_made_parent = False

  @property
  def is_used(self) -> bool:
    """Whether an image was added."""
    return bool(self._names)

  def add(self, content: bytes) -> str:
    """The name of the image with this content, which is written if it is new.

    Raises:
      UserError: the folder exists and has other files.
      OSError: the file cannot be written.
    """
    digest = hashlib.sha256(content).digest()
    if digest not in self._names:
      if not self._has_begun:
        self._begin()
      name = f"{len(self._names):08d}.{_ending(content)}"
      (self._partial / name).write_bytes(content)
      self._names[digest] = name
    return self._names[digest]

  def publish(self) -> None:
    """Gives the folder its name, if there are images."""
    if self.is_used:
      os.replace(self._partial, self._folder)
      self._is_published = True

  def discard(self) -> None:
    """Removes what was written, published or not."""
    if self._has_begun:
      shutil.rmtree(self._folder if self._is_published else self._partial, ignore_errors=True)
    if self._has_made_parent:
      with contextlib.suppress(OSError):  # somebody else has written to it
        self._folder.parent.rmdir()

  def _begin(self) -> None:
    is_folder = self._folder.is_dir() and not self._folder.is_symlink()
    if os.path.lexists(self._folder) and (not is_folder or any(self._folder.iterdir())):
      raise UserError(f"{self._folder} exists already: choose another --out, or delete it")
    self._has_begun = True
    self._has_made_parent = not self._folder.parent.exists()
    shutil.rmtree(self._partial, ignore_errors=True)  # of a process that was killed
    self._partial.mkdir(parents=True)


def _ending(content: bytes) -> str:
  try:
    return images.format_of(content, "").lower().replace("jpeg", "jpg")
  except images.UnreadableImageError:  # `data check` will name the file
    return "jpg"
