"""Ranking a gallery for every caption: ours, and the usual full matrix, full sort in PyTorch."""

from typing import Any

import numpy as np

from experiments.speed.benchmark import timing

DIM = 512
PERSONS = 1000
TOLERANCE = 0.05  # percent, between two rankings of the same features
# Queries x gallery; the second is about ICFG-PEDES, whose test split ranks 19,848 x 19,848.
SIZES = {"6156x3074": (6156, 3074), "20000x20000": (20000, 20000)}
# Bytes of the PyTorch way for each entry of the matrix: similarities and their sorted copy in
# float32, order, matches and running counts in int64, and intermediate results.
TORCH_BYTES_PER_ENTRY = 44


def data(size: tuple[int, int], dim: int = DIM) -> tuple[np.ndarray, ...]:
  """Features and identities of queries and gallery: (Q, D), (G, D), (Q,), (G,)."""
  random, (queries, items) = np.random.default_rng(0), size
  persons = min(PERSONS, items)
  centres = random.standard_normal((persons, dim), np.float32)
  query_ids, gallery_ids = np.arange(queries) % persons, np.arange(items) % persons
  noisy = lambda ids: centres[ids] + 3 * random.standard_normal((len(ids), dim), np.float32)
  return noisy(query_ids), noisy(gallery_ids), query_ids, gallery_ids


def torch_metrics(
  query_features: np.ndarray,
  gallery_features: np.ndarray,
  query_ids: np.ndarray,
  gallery_ids: np.ndarray,
  device: str = "cpu",
) -> dict[str, float]:
  """R@K, mAP and mINP in percent from the whole sorted matrix."""
  import torch

  to = lambda array: torch.from_numpy(np.asarray(array)).to(device)
  unit = lambda array: torch.nn.functional.normalize(to(array))
  similarity = unit(query_features) @ unit(gallery_features).T
  order = torch.argsort(similarity, dim=1, descending=True)
  matches = to(gallery_ids)[order] == to(query_ids)[:, None]
  so_far = matches.cumsum(dim=1)
  rank = torch.arange(1, matches.shape[1] + 1, device=device)
  number = so_far[:, -1]
  last = (matches * rank).max(dim=1).values
  values = {f"R{k}": matches[:, :k].any(dim=1).float() for k in (1, 5, 10)}
  values["mAP"] = (so_far / rank * matches).sum(dim=1) / number
  values["mINP"] = number / last
  return {name: 100 * value.mean().item() for name, value in values.items()}


class Ranking:
  """One way to rank, as an implementation; parts are names in `SIZES`.

  Args:
    way: "ours" or "torch".
    threads: of the processor.
  """

  def __init__(self, way, threads):
    self._way = way
    if way == "ours":
      from dgia_jax.training.retrieval_metrics import retrieval_metrics_from_features

      self._rank = retrieval_metrics_from_features
    else:
      import torch

      torch.set_num_threads(threads)
      device = "cuda" if torch.cuda.is_available() else "cpu"
      self._rank = lambda *arrays: torch_metrics(*arrays, device=device)

  def prepare(self, part: str) -> dict[str, Any]:
    """Draws the data and ranks once; returns the metrics and the memory before ranking."""
    self._data = data(SIZES[part])
    before = timing.peak_memory()
    return {"metrics": self._rank(*self._data), "before": before}

  def measure(self, part: str, calls: int) -> float:
    """Seconds per ranking."""
    del part
    return timing.timed(lambda: [self._rank(*self._data) for _ in range(calls)]) / calls

  def peak_memory(self) -> int:
    """Bytes of main memory."""
    return timing.peak_memory()
