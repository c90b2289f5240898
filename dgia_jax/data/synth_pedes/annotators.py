"""The annotators of synth_pedes, who write its captions and may have habits.

An annotator with habits prefers some words, sentences and attributes to others. So the captions of
two annotators differ more than two captions of one, as in datasets that people have annotated.
"""

import functools
import math
import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from dgia_jax.data.synth_pedes.settings import Settings

T = TypeVar("T")

_HABIT = 0.75  # probability that the favourite word or order is taken
_INTEREST = 0.7  # standard deviation of the logarithm of an attribute's weight


class Annotator:
  """An annotator without habits: decides what a caption names, and in which words."""

  def pick(self, choices: Sequence[T], rng: np.random.Generator) -> T:
    """Chooses a word, a phrase or the order of a sentence; here uniformly."""
    return choices[rng.integers(len(choices))]

  def interest(self, attribute: str) -> float:
    """Factor on the weight with which an attribute is mentioned; here the same for all."""
    del attribute
    return 1.0


class Habitual(Annotator):
  """One of the annotators of a dataset; deterministic in (seed, number)."""

  def __init__(self, seed: int, number: int):
    self._seed, self._number = seed, number

  def pick(self, choices: Sequence[T], rng: np.random.Generator) -> T:
    """Chooses this annotator's favourite most of the time, else uniformly."""
    if rng.random() < _HABIT:
      return choices[min(int(self._draw(repr(choices)) * len(choices)), len(choices) - 1)]
    return choices[rng.integers(len(choices))]

  def interest(self, attribute: str) -> float:
    """A factor near 1, log-normal over annotators."""
    # Box-Muller, from two draws that belong to the attribute.
    radius = math.sqrt(-2 * math.log(1 - self._draw(f"{attribute} radius")))
    return math.exp(_INTEREST * radius * math.cos(2 * math.pi * self._draw(attribute)))

  def _draw(self, subject: str) -> float:
    return _draw(self._seed, self._number, subject)


@functools.lru_cache(maxsize=1 << 16)
def _draw(seed: int, number: int, subject: str) -> float:
  """What an annotator thinks of a subject, uniform in [0, 1)."""
  return float(np.random.default_rng([seed, number, 6, zlib.crc32(subject.encode())]).random())


def annotator_of(settings: Settings, person: int, image: int, caption: int) -> Annotator:
  """The annotator who writes a caption, one of `settings.annotators` at random."""
  if not settings.annotators:
    return Annotator()
  rng = np.random.default_rng([settings.seed, person, 5, image, caption])
  return Habitual(settings.seed, int(rng.integers(settings.annotators)))
