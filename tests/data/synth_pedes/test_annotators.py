"""Annotators with habits."""

import numpy as np

from dgia_jax.data.synth_pedes.annotators import Annotator, Habitual, annotator_of
from dgia_jax.data.synth_pedes.generate import draw_person
from tests.helpers.synthetic_people import TINY, same


def favourite(annotator, choices):
  """The choice that an annotator makes most often, and its share."""
  rng = np.random.default_rng(0)
  picked = [annotator.pick(choices, rng) for _ in range(400)]
  return max((picked.count(choice) / len(picked), choice) for choice in choices)


def test_annotators_with_habits_prefer_different_words():
  words = ("wearing", "dressed in", "in")
  favourites = [favourite(Habitual(0, number), words) for number in range(20)]
  assert {word for _, word in favourites} == set(words)
  assert all(0.75 < share < 0.92 for share, _ in favourites)  # 0.75 + 0.25 / 3, +- 4 sigma
  assert favourite(Annotator(), words)[0] < 0.42


def test_annotators_with_habits_mention_different_attributes():
  interests = np.log([Habitual(1, number).interest("bag") for number in range(300)])
  assert abs(interests.mean()) < 0.15 and 0.6 < interests.std() < 0.8
  annotator = Habitual(1, 0)
  assert annotator.interest("bag") == annotator.interest("bag") != annotator.interest("hat")
  assert annotator.interest("bag") != Habitual(2, 0).interest("bag")  # of another world
  assert Annotator().interest("bag") == 1.0


def test_captions_are_shared_out_among_the_annotators():
  settings = TINY.replace(annotators=3)
  annotators = [annotator_of(settings, 0, image, 0) for image in range(60)]
  words = {tuple(annotator.interest(name) for name in ("bag", "hat")) for annotator in annotators}
  assert len(words) == 3
  assert type(annotator_of(TINY, 0, 0, 0)) is Annotator


def test_habits_change_captions_and_not_images():
  plain, habitual = (draw_person(TINY.replace(annotators=n), "train", 3) for n in (0, 5))
  for a, b in zip(plain, habitual, strict=True):
    assert np.array_equal(a["image"], b["image"]) and a["captions"] != b["captions"]
  again = draw_person(TINY.replace(annotators=5), "train", 3)
  assert all(same(a, b) for a, b in zip(habitual, again, strict=True))
