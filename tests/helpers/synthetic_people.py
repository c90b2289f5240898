"""Small settings of synthetic people, and what tests ask of them."""

from collections.abc import Iterator

import numpy as np

from dgia_jax.data.synth_pedes import Settings, cameras, drawing, people

TINY = Settings(train_people=6, val_people=2, test_people=3, images_per_person=4)
HONEST = TINY.replace(wrong=0.0, vague=0.0, attributes_per_caption=(2, 30))


def views_of(
  settings: Settings, number: int
) -> Iterator[tuple[people.Person, cameras.View, set[str]]]:
  """Yields (person, view, names of the visible parts) for every view of a person."""
  person = people.sample_person(settings.seed, number, settings.variety)
  for view in cameras.sample_views(settings, number):
    yield person, view, drawing.draw(person, view, settings.height, settings.width)[1]


def same(a: dict, b: dict) -> bool:
  """Whether two records have the same image and texts."""
  texts = ("captions", "person_id", "image_path")
  return np.array_equal(a["image"], b["image"]) and all(a[k] == b[k] for k in texts)
