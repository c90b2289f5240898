"""Times queries to a search index of many images with random features.

Command: python -m experiments.speed.search_speed --images 1000000 --dim 512
Prints:  seconds to open the index, milliseconds per query, whether results equal brute force
"""

import argparse
import json
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from dgia_jax import sharding
from dgia_jax.search import index as index_lib
from dgia_jax.search import index_files
from dgia_jax.search.image_files import ImageFile


def write_index(folder: pathlib.Path | str, num_images: int, dim: int) -> None:
  """Writes an index of random unit features, part by part, as `python -m dgia_jax.search` does."""
  folder = pathlib.Path(folder)
  for name in (index_files.PARTS, index_files.FILES):
    (folder / name).mkdir(parents=True)
  about = {
    "format": index_files.FORMAT,
    "model": "none",
    "model_digest": "none",
    "images": str(folder),
    "feature_width": dim,
  }
  index_files.write_about(folder, about)
  for number, start in enumerate(range(0, num_images, index_lib.PART_IMAGES)):
    count = min(index_lib.PART_IMAGES, num_images - start)
    features = np.random.default_rng(number).standard_normal((count, dim), np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    crc32 = index_files.append_features(folder, start, features)
    images = [ImageFile(f"{start + row:09d}.jpg", 1, 1, 1) for row in range(count)]
    index_files.write_files(folder, number, ((image, "none") for image in images))
    index_files.write_part(folder, index_files.Part(number, start, count, crc32, []))


def measure(folder: pathlib.Path | str, dim: int, repeats: int, top: int = 20) -> dict[str, Any]:
  """Opens an index and times queries.

  Returns:
    {"open_seconds", "query_ms": {"median", "min", "max"}, "equal": whether the results of one query
    equal brute force}.
  """
  start = time.perf_counter()
  index = index_lib.SearchIndex(folder, sharding.create_mesh())
  opened = time.perf_counter() - start
  queries = np.random.default_rng(10**6).standard_normal((repeats + 1, 1, dim), np.float32)
  seconds = []
  for query in queries:
    start = time.perf_counter()
    _, rows = index.search(query, top)
    seconds.append(time.perf_counter() - start)
  features = index.features(np.arange(len(index)))
  best = np.argsort(-(features @ queries[-1, 0]), kind="stable")[:top]
  milliseconds = 1e3 * np.array(seconds[1:])  # the first compiles
  spread = {
    name: round(float(getattr(np, name)(milliseconds)), 2) for name in ("median", "min", "max")
  }
  return {
    "open_seconds": round(opened, 2),
    "query_ms": spread,
    "equal": bool((rows[0] == best).all()),
  }


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--images", type=int, default=1_000_000)
  parser.add_argument("--dim", type=int, default=512)
  parser.add_argument("--repeats", type=int, default=20)
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    write_index(pathlib.Path(folder) / "index", options.images, options.dim)
    print(json.dumps(measure(pathlib.Path(folder) / "index", options.dim, options.repeats)))


if __name__ == "__main__":
  main()
