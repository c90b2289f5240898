"""Times queries to a search index of made-up features, with and without codes, side by side.

Command: python -m experiments.speed.search_speed --images 1000000 --features persons
Prints:  one JSON object: seconds to open the index, milliseconds per query by features in float32
         and by codes of 8 bits, their ratio, rows that were scored again, memory, and the number
         of test queries whose results differ
"""

import argparse
import functools
import json
import pathlib
import tempfile
import time
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from dgia_jax import sharding
from dgia_jax.search import codes as codes_lib
from dgia_jax.search import index as index_lib
from dgia_jax.search import index_files
from dgia_jax.search.image_files import ImageFile
from dgia_jax.search.index import SearchIndex

TOP = 20
BATCH = 64  # test queries at once
# Features of persons: many images of each; a mean that all share; few directions that matter most.
IMAGES_PER_PERSON, MAX_PERSONS, NOISE, SHARED = 20, 50_000, 0.4, 3.0


def features(kind: str, seed: int, count: int, dim: int, num_images: int) -> Any:
  """Made-up features of norm 1, (count, dim): "random" directions, or crowded as of "persons"."""
  rng = np.random.default_rng([seed, num_images])
  rows = rng.standard_normal((count, dim), np.float32)
  if kind == "persons":
    weight = np.arange(1, dim + 1, dtype=np.float32) ** -0.5
    shared = np.random.default_rng(0).standard_normal(dim, np.float32)
    persons = _persons(min(max(num_images // IMAGES_PER_PERSON, 1), MAX_PERSONS), dim)
    person = rng.integers(0, len(persons), count)
    rows = weight * (SHARED * shared + persons[person] + NOISE * rows)
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@functools.lru_cache(1)
def _persons(count: int, dim: int) -> Float[np.ndarray, "count dim"]:
  """What the features of each person have in common."""
  return np.random.default_rng(1).standard_normal((count, dim), np.float32)


def write_index(
  folder: pathlib.Path | str, num_images: int, dim: int, kind: str = "random"
) -> float:
  """Writes an index as `python -m dgia_jax.search` does; returns seconds that its codes took."""
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
    crc32 = index_files.append_features(
      folder, start, features(kind, number, count, dim, num_images)
    )
    images = [ImageFile(f"{start + row:09d}.jpg", 1, 1, 1) for row in range(count)]
    index_files.write_files(folder, number, ((image, "none") for image in images))
    index_files.write_part(folder, index_files.Part(number, start, count, crc32, []))
  start = time.perf_counter()
  codes_lib.update(folder, index_files.read_parts(folder), dim)
  return time.perf_counter() - start


def test_queries(index: SearchIndex, kind: str, count: int, dim: int) -> Float[np.ndarray, "Q D"]:
  """Queries, every second of which is the feature of an indexed image."""
  queries = features(kind, 10**6, count, dim, len(index))
  rows = np.random.default_rng(2).integers(0, len(index), count)
  queries[::2] = index.features(rows[::2])
  return queries


def measure(
  folder: pathlib.Path | str,
  kind: str,
  dim: int,
  repeats: int,
  num_queries: int,
  contenders: tuple[str, ...] = ("float32", "codes"),
) -> dict[str, Any]:
  """Opens an index in both ways, times queries in turn, and compares the results.

  Returns:
    {"open_seconds", "query_ms" and "queries_ms" (several at once, per query): {contender: median},
    "ratio", "queries_ratio", "memory_mb", "rescored": rows per query, "queries": number of test
    queries, "differing": those whose rows or scores differ}.
  """
  indices, opened, memory = {}, {}, {}
  mesh = sharding.create_mesh(devices=jax.local_devices()[:1])
  for name in contenders:
    before, start = _memory(), time.perf_counter()
    indices[name] = SearchIndex(folder, mesh, use_codes=name == "codes")
    opened[name] = round(time.perf_counter() - start, 2)
    indices[name].search(np.ones((1, dim), np.float32), TOP)
    memory[name] = round(_memory() - before)
  queries = test_queries(indices[contenders[-1]], kind, max(num_queries, repeats), dim)
  single = _times(indices, [query[None] for query in queries[:repeats]])
  several = _times(indices, [queries[:BATCH]] * max(repeats // 10, 1))
  coded = indices.get("codes")
  before = coded.num_rescored if coded else 0
  results = {"float32": [], "codes": []}
  for start in range(0, num_queries, BATCH):
    for name, index in indices.items():
      results[name].append(index.search(queries[start : min(start + BATCH, num_queries)], TOP))
  differing = sum(
    int(((rows != others) | (scores != other_scores)).any(axis=1).sum())
    for (scores, rows), (other_scores, others) in zip(*results.values(), strict=False)
  )
  report = {
    "open_seconds": opened,
    "query_ms": {name: round(1e3 * time, 2) for name, time in single.items()},
    "queries_ms": {
      name: round(1e3 * time / len(queries[:BATCH]), 2) for name, time in several.items()
    },
    "memory_mb": memory,
  }
  if coded:
    report["rescored"] = round((coded.num_rescored - before) / max(num_queries, 1), 1)
  if len(indices) == 2:
    report["ratio"] = round(single["float32"] / single["codes"], 2)
    report["queries_ratio"] = round(several["float32"] / several["codes"], 2)
    report |= {"queries": num_queries, "differing": differing}
  return report


def _times(indices: dict[str, SearchIndex], batches: list[np.ndarray]) -> dict[str, float]:
  """Median seconds of a search by contender; they take turns, so that they share disturbances."""
  seconds = {name: [] for name in indices}
  for batch in [batches[0], *batches]:  # the first compiles
    for name, index in indices.items():
      start = time.perf_counter()
      index.search(batch, TOP)
      seconds[name].append(time.perf_counter() - start)
  return {name: float(np.median(values[1:])) for name, values in seconds.items()}


def _memory() -> float:
  """Resident memory of this process in MB."""
  status = pathlib.Path("/proc/self/status").read_text()
  return int(status.split("VmRSS:")[1].split()[0]) / 1024


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--images", type=int, default=1_000_000)
  parser.add_argument("--dim", type=int, default=512)
  parser.add_argument("--features", choices=("random", "persons"), default="random")
  parser.add_argument("--repeats", type=int, default=50, help="timed queries")
  parser.add_argument("--queries", type=int, default=10_000, help="queries that are compared")
  parser.add_argument("--only_codes", action="store_true", help="no search by float32 features")
  parser.add_argument("--folder", help="where the index is written for the time of this program")
  options = parser.parse_args()
  contenders = ("codes",) if options.only_codes else ("float32", "codes")
  with tempfile.TemporaryDirectory(dir=options.folder) as folder:
    index = pathlib.Path(folder) / "index"
    seconds = write_index(index, options.images, options.dim, options.features)
    report = measure(
      index, options.features, options.dim, options.repeats, options.queries, contenders
    )
  print(json.dumps({"images": options.images, "coding_seconds": round(seconds, 1)} | report))


if __name__ == "__main__":
  main()
