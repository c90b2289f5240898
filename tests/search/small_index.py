"""Writes an index of made-up features, without images and without a model."""

import numpy as np

from dgia_jax.search import index_files
from dgia_jax.search.image_files import ImageFile

DIM = 16


def write_index(folder, paths, part_rows=300, seed=0):
  """Writes rows of these paths, in parts; neither paths nor codes are in their fast form."""
  for name in (index_files.PARTS, index_files.FILES):
    (folder / name).mkdir(parents=True)
  about = {"model": "none", "model_digest": "none", "images": str(folder.parent / "images")}
  about |= {"format": index_files.FORMAT, "feature_width": DIM}
  index_files.write_about(folder, about)
  rng = np.random.default_rng(seed)
  for number, start in enumerate(range(0, len(paths), part_rows)):
    part_paths = paths[start : start + part_rows]
    features = rng.normal(size=(len(part_paths), DIM)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    crc32 = index_files.append_features(folder, start, features)
    entries = [(ImageFile(path, 1, 2, 3), f"hash of {path}") for path in part_paths]
    index_files.write_files(folder, number, entries)
    part = index_files.Part(number, start, len(part_paths), crc32, [])
    index_files.write_part(folder, part)
  index_files.write_gone(folder, set(), -(-len(paths) // part_rows))
  return folder
