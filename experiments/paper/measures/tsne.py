"""Supplement Figure 1: image and caption features of some test people, projected onto a plane.

Features are normalised, as for retrieval, and projected with t-SNE (scikit-learn, fixed seed). The
people are spread evenly over the test split, so the choice does not depend on the result.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from dgia_jax.errors import UserError
from dgia_jax.training import evaluate
from experiments.paper.measures import finished

PEOPLE = 12
SEED = 0
Project = Callable[[np.ndarray], np.ndarray]  # (n, D) -> (n, 2)


def measure(
  config: ConfigDict,
  folder: pathlib.Path,
  splits: finished.Splits,
  choice: str,
  people: int = PEOPLE,
  project: Project | None = None,
) -> dict[str, Any]:
  """Features of some test people in two dimensions.

  Args:
    config, folder, splits, choice: as `finished.open_run`.
    people: number of people.
    project: the projection; None for t-SNE.

  Returns:
    {"step", "points": [{"person", "kind" ("image" or "text"), "x", "y"}]}.

  Raises:
    UserError: scikit-learn is not installed.
  """
  project = project or load_tsne()
  setup, params, step = finished.open_run(config, folder, splits, choice)
  pairs = splits["test"]
  images_MxD, texts_NxD = evaluate.Evaluator(setup).embed(params, pairs)
  chosen = chosen_people(pairs.person_of_image_M, people)
  image_M = np.flatnonzero(np.isin(pairs.person_of_image_M, chosen))
  pair_N = np.flatnonzero(np.isin(pairs.person_of_pair_N, chosen))
  features = np.concatenate([images_MxD[image_M], texts_NxD[pair_N]])
  positions = project(features / np.linalg.norm(features, axis=1, keepdims=True))
  persons = np.concatenate([pairs.person_of_image_M[image_M], pairs.person_of_pair_N[pair_N]])
  kinds = ["image"] * len(image_M) + ["text"] * len(pair_N)
  rows = zip(persons.tolist(), kinds, positions.tolist(), strict=True)
  return {
    "step": step,
    "points": [{"person": person, "kind": kind, "x": x, "y": y} for person, kind, (x, y) in rows],
  }


def chosen_people(person_of_image_M: Int[np.ndarray, " M"], count: int) -> Int[np.ndarray, " _"]:
  """`count` identities, spread evenly over those with at least two images."""
  persons, images = np.unique(person_of_image_M, return_counts=True)
  several = persons[images > 1] if (images > 1).any() else persons
  return several[finished.spread(len(several), count)]


def load_tsne() -> Project:
  """The t-SNE projection.

  Raises:
    UserError: scikit-learn is not installed.
  """
  try:
    from sklearn.manifold import TSNE
  except ImportError as error:
    raise UserError('tsne needs scikit-learn: pip install -e ".[experiments]"') from error

  def project(features_nxD: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n 2"]:
    perplexity = min(30.0, (len(features_nxD) - 1) / 3)
    layout = TSNE(2, perplexity=perplexity, init="pca", random_state=SEED)
    return layout.fit_transform(np.asarray(features_nxD, np.float64))

  return project
