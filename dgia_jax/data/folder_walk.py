"""Walking through a folder of the user: links are followed, and each folder is visited once."""

import os
from collections.abc import Callable, Iterator


def walk(folder: str, on_error: Callable[[OSError], None]) -> Iterator[tuple[str, list[str]]]:
  """Yields each folder with the names of its files; circles of links end.

  Subfolders are visited in the order of their names, links to folders after real ones: a folder
  with a link beside it is visited under its own name.

  Args:
    folder: where to begin.
    on_error: called with the error of each folder that cannot be listed.
  """
  seen = {_identity(folder)}
  for parent, folders, names in os.walk(folder, followlinks=True, onerror=on_error):
    unseen = []
    for name in sorted(
      folders, key=lambda name: (os.path.islink(os.path.join(parent, name)), name)
    ):
      identity = _identity(os.path.join(parent, name))
      if identity is None or identity not in seen:
        unseen.append(name)
        seen.add(identity)
    folders[:] = unseen
    yield parent, names


def _identity(path: str) -> tuple[int, int] | None:
  try:
    status = os.stat(path)
  except OSError:
    return None  # `os.walk` reports it
  return status.st_dev, status.st_ino
