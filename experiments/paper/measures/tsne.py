"""Supplement Figure 1: features of some test people on a plane, images and captions together.

Features are normalised, as they are for retrieval, and laid out by t-SNE (scikit-learn, with a
fixed seed). The people are spread evenly over the test split, not chosen by how they come out.
"""

import numpy as np

from dgia_jax.errors import UserError
from dgia_jax.training import evaluate
from experiments.paper.measures import finished

PEOPLE = 12
SEED = 0


def measure(config, folder, splits, choice, people=PEOPLE, project=None):
  """Features of some test people in two dimensions.

  Args:
    config, folder, splits, choice: as `finished.open_run`.
    people: how many.
    project: function (n, D) -> (n, 2); None for t-SNE.

  Returns:
    {"step", "points": [{"person", "kind" ("image" or "text"), "x", "y"}]}.

  Raises:
    UserError: scikit-learn is not installed.
  """
  project = project or load_tsne()
  parts, params, step = finished.open_run(config, folder, splits, choice)
  pairs = splits["test"]
  images_MxD, texts_NxD = evaluate.Evaluator(parts).embed(params, pairs)
  chosen = chosen_people(pairs.person_of_image_M, people)
  image_M = np.flatnonzero(np.isin(pairs.person_of_image_M, chosen))
  pair_N = np.flatnonzero(np.isin(pairs.person_of_pair_N, chosen))
  features = np.concatenate([images_MxD[image_M], texts_NxD[pair_N]])
  place = project(features / np.linalg.norm(features, axis=1, keepdims=True))
  persons = np.concatenate([pairs.person_of_image_M[image_M], pairs.person_of_pair_N[pair_N]])
  kinds = ["image"] * len(image_M) + ["text"] * len(pair_N)
  rows = zip(persons.tolist(), kinds, place.tolist(), strict=True)
  return {
    "step": step,
    "points": [{"person": who, "kind": kind, "x": x, "y": y} for who, kind, (x, y) in rows],
  }


def chosen_people(person_of_image_M, count):
  """`count` identities, spread evenly over those that have at least two images."""
  persons, images = np.unique(person_of_image_M, return_counts=True)
  several = persons[images > 1] if (images > 1).any() else persons
  return several[finished.spread(len(several), count)]


def load_tsne():
  """t-SNE as a function (n, D) -> (n, 2).

  Raises:
    UserError: scikit-learn is not installed.
  """
  try:
    from sklearn.manifold import TSNE
  except ImportError as error:
    raise UserError('tsne needs scikit-learn: pip install -e ".[experiments]"') from error

  def project(features_nxD):
    perplexity = min(30.0, (len(features_nxD) - 1) / 3)
    layout = TSNE(2, perplexity=perplexity, init="pca", random_state=SEED)
    return layout.fit_transform(np.asarray(features_nxD, np.float64))

  return project
