"""Times queries to a search index of made-up features, with and without codes, side by side.

Commands: python -m experiments.speed.search_speed --images 1000000 --features persons
          python -m experiments.speed.search_speed --images 10000000 --features persons --only_codes
Prints:   one JSON object: seconds to open the index, seconds from then on until its codes are
          verified, milliseconds per query by features in float32 and by codes of 8 bits, their
          ratio, rows that were scored again, memory, and the number of test queries whose results
          differ

With --only_codes, where the features may exceed the memory, results are compared with those of one
pass over the file of features that NumPy computes. An index in --folder is kept for the next time.
"""

import argparse
import contextlib
import functools
import json
import pathlib
import shutil
import tempfile
import time
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from dgia_jax import sharding
from dgia_jax.search import codes as codes_lib
from dgia_jax.search import exact, index_files, index_paths
from dgia_jax.search import index as index_lib
from dgia_jax.search.image_files import ImageFile
from dgia_jax.search.index import SearchIndex

TOP = 20
BATCH = 64  # test queries at once
BLOCK_ROWS = 2**15  # compared at a time where all features are read
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
  parts = index_files.read_parts(folder)
  index_paths.update(folder, parts)
  start = time.perf_counter()
  codes_lib.update(folder, parts, dim)
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
    {"open_seconds", "check_seconds" (from then on, until the codes are verified), "query_ms" and
    "queries_ms" (several at once, per query): {contender: median}, "ratio", "queries_ratio",
    "memory_mb": growth of the process, "resident_mb": its whole memory, files that it maps
    included, "rescored": rows per query, "queries": number of test queries, "differing": those
    whose rows or scores differ}.
  """
  indices, opened, checked, memory, total = {}, {}, {}, {}, {}
  mesh = sharding.create_mesh(devices=jax.local_devices()[:1])
  for name in contenders:
    before, start = _memory(), time.perf_counter()
    indices[name] = SearchIndex(folder, mesh, use_codes=name == "codes")
    opened[name] = round(time.perf_counter() - start, 2)
    start = time.perf_counter()
    indices[name].features(indices[name].rows[:1])  # waits for the verification
    checked[name] = round(time.perf_counter() - start, 2)
    indices[name].search(np.ones((1, dim), np.float32), TOP)
    memory[name] = round(_memory() - before)
    total[name] = round(_memory())
  queries = test_queries(indices[contenders[-1]], kind, max(num_queries, repeats), dim)
  single = _times(indices, [query[None] for query in queries[:repeats]])
  several = _times(indices, [queries[:BATCH]] * max(repeats // 10, 1))
  coded = indices.get("codes")
  before = coded.num_rescored if coded else 0
  results = {"float32": [], "codes": []}
  for start in range(0, num_queries, BATCH):
    for name, index in indices.items():
      results[name].append(index.search(queries[start : min(start + BATCH, num_queries)], TOP))
  if contenders == ("codes",) and num_queries:
    parts = index_files.read_parts(folder)
    features_NxD = index_files.open_features(folder, parts, dim, verify=False)
    results["float32"].append(nearest_of_all(features_NxD, queries[:num_queries], TOP))
  differing = _differing(*map(_joined, results.values())) if num_queries else 0
  report = {
    "open_seconds": opened,
    "check_seconds": checked,
    "query_ms": {name: round(1e3 * time, 2) for name, time in single.items()},
    "queries_ms": {
      name: round(1e3 * time / len(queries[:BATCH]), 2) for name, time in several.items()
    },
    "memory_mb": memory,
    "resident_mb": total,
  }
  if coded:
    report["rescored"] = round((coded.num_rescored - before) / max(num_queries, 1), 1)
  if len(indices) == 2:
    report["ratio"] = round(single["float32"] / single["codes"], 2)
    report["queries_ratio"] = round(several["float32"] / several["codes"], 2)
  return report | {"queries": num_queries, "differing": differing}


def nearest_of_all(
  features_NxD: Float[np.ndarray, "N D"], queries_QxD: Float[np.ndarray, "Q D"], top: int
) -> tuple[Float[np.ndarray, "Q K"], Int[np.ndarray, "Q K"]]:
  """The results of a search, from one pass over all features and without the package's devices.

  Raises:
    RuntimeError: float32 does not tell with certainty which rows are the best.
  """
  queries_QxD, kept = exact.unit_queries(queries_QxD), top + exact.SPARE
  queries = queries_QxD.astype(np.float32)
  near_QxC = np.zeros((len(queries), 0), np.float32)
  rows_QxC = np.zeros((len(queries), 0), np.int32)
  for start in range(0, len(features_NxD), BLOCK_ROWS):
    block_QxR = queries @ np.array(features_NxD[start : start + BLOCK_ROWS]).T
    count = min(kept, block_QxR.shape[1])
    place_QxC = np.argpartition(-block_QxR, count - 1, axis=1)[:, :count]
    near_QxC = np.hstack([near_QxC, np.take_along_axis(block_QxR, place_QxC, axis=1)])
    rows_QxC = np.hstack([rows_QxC, start + place_QxC.astype(np.int32)])
    order_QxC = np.argsort(-near_QxC, axis=1, kind="stable")[:, :kept]
    near_QxC = np.take_along_axis(near_QxC, order_QxC, axis=1)
    rows_QxC = np.take_along_axis(rows_QxC, order_QxC, axis=1)
  read = lambda rows: np.array(features_NxD[rows])
  scores, rows = zip(
    *(
      exact.best(exact.scores(query_D, rows_C, read), rows_C, top)
      for query_D, rows_C in zip(queries_QxD, rows_QxC, strict=True)
    ),
    strict=True,
  )
  worst_Q = np.stack(scores)[:, -1]
  error = exact.float32_error(queries.shape[1])
  if len(features_NxD) > kept and (near_QxC[:, -1] + error >= worst_Q).any():
    raise RuntimeError("too many features are nearly as similar as the last result")
  return np.stack(scores).astype(np.float32), np.stack(rows)


def _joined(results: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
  """Scores and rows of all queries."""
  return [np.concatenate(arrays) for arrays in zip(*results, strict=True)]


def _differing(ours: list[np.ndarray], others: list[np.ndarray]) -> int:
  """Number of queries whose rows or scores differ."""
  return int(
    np.any([(a != b).any(axis=1) for a, b in zip(ours, others, strict=True)], axis=0).sum()
  )


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
  parser.add_argument("--folder", help="where the index is kept; default: a temporary folder")
  options = parser.parse_args()
  contenders = ("codes",) if options.only_codes else ("float32", "codes")
  with contextlib.ExitStack() as stack:
    folder = options.folder or stack.enter_context(tempfile.TemporaryDirectory())
    index = pathlib.Path(folder) / f"{options.images}x{options.dim}-{options.features}"
    about = {"images": options.images}
    if not index.exists():
      unfinished = index.with_suffix(".unfinished")
      shutil.rmtree(unfinished, ignore_errors=True)
      seconds = write_index(unfinished, options.images, options.dim, options.features)
      about["coding_seconds"] = round(seconds, 1)
      unfinished.rename(index)
    about |= measure(
      index, options.features, options.dim, options.repeats, options.queries, contenders
    )
  print(json.dumps(about))


if __name__ == "__main__":
  main()
