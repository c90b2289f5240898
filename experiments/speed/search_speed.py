"""Times queries to an index of many images, made of random features in the form `search` writes.

Command: python -m experiments.speed.search_speed --images 1000000 --dim 512
Prints:  seconds to open the index, milliseconds a query and whether answers equal brute force
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile
import time

import numpy as np

from dgia_jax import files, sharding
from dgia_jax.search import index as index_lib


def write_index(folder, num_images, dim):
  """Writes an index of normal random features, part by part, as `search_index.build` does."""
  folder = pathlib.Path(folder)
  (folder / index_lib.PARTS).mkdir(parents=True)
  about = {"model": "none", "model_digest": "none", "images": str(folder), "feature_width": dim}
  files.write_json(folder / index_lib.ABOUT, about)
  for number, start in enumerate(range(0, num_images, index_lib.PART_IMAGES)):
    count = min(index_lib.PART_IMAGES, num_images - start)
    features = np.random.default_rng(number).standard_normal((count, dim), np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    np.save(folder / index_lib.PARTS / f"{number:05d}.npy", features)
    images = [index_lib.ImageFile(f"{start + row:09d}.jpg", 1, 1) for row in range(count)]
    entries = [dataclasses.astuple(image) for image in images]
    files.write_json(folder / index_lib.PARTS / f"{number:05d}.json", entries)


def measure(folder, dim, repeats, top=20):
  """Opens an index and asks it.

  Returns:
    {"open_seconds", "query_ms": {"median", "min", "max"}, "equal": answers of one query equal
    brute force}.
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


def main():
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
