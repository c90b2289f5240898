"""Settings of synth_pedes: the number of people and images, and the difficulty.

`Settings` is a plain frozen dataclass, so that the same data can be drawn with or without TFDS.
Different settings have different names, and so never share a folder.
"""

import dataclasses
import hashlib
import numbers
from typing import Any

from dgia_jax.errors import UserError

# Numbers of people begin at a fixed start in each split. So splits never overlap, and the people of
# val and test do not depend on the number of training people.
SPLIT_START = {"train": 0, "val": 1_000_000, "test": 2_000_000}


@dataclasses.dataclass(frozen=True)
class Settings:
  """All settings of the images and captions. Raises UserError for a value out of range."""

  # --- size ---
  train_people: int = 2700  # identities per split; 0 omits the split (train needs 1)
  val_people: int = 200
  test_people: int = 200
  images_per_person: int = 6  # each by another camera
  captions_per_image: int = 1
  height: int = 64  # pixels
  width: int = 32  # pixels
  seed: int = 0

  # --- difficulty ---
  # Number of attributes that a caption names, uniform between both ends. With fewer, the captions
  # of a person complement each other more.
  attributes_per_caption: tuple[int, int] = (4, 7)
  vague: float = 0.1  # probability of a broader word for an attribute, such as "dark" for navy
  rare_words: float = 0.0  # probability of a rarer word, such as "crimson"; see rare_words.py
  wrong: float = 0.05  # probability of a wrong value for an attribute
  # Annotators with habits, who prefer some words, sentences and attributes; 0: all captions are
  # by one annotator without habits.
  annotators: int = 0
  # Strength of pose, scale, background, light, colour cast, blur and noise: 0 none, 0.3 mild, 1 as
  # in bad surveillance images, at most 2.
  camera: float = 0.25
  occlusion: float = 0.1  # probability of an object in front of the person
  # Evenness of the distribution of attributes: 1 as in a street; below 1 people are more similar
  # (in the limit all wear black), above 1 less.
  variety: float = 1.4

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      _check_kind(field.name, getattr(self, field.name), field.default)
    _check(self.train_people >= 1, "train_people", self.train_people, "at least 1")
    for field, low, high in _RANGES:
      value = getattr(self, field)
      _check(low <= value <= high, field, value, f"from {low} to {high}")
    pair = self.attributes_per_caption
    _check(
      len(pair) == 2 and 1 <= pair[0] <= pair[1],
      "attributes_per_caption",
      pair,
      "two counts (fewest, most), 1 <= fewest <= most",
    )

  @property
  def name(self) -> str:
    """The folder name, composed of the values that differ from the default; else "default"."""
    for preset, settings in PRESETS.items():
      if self == settings:
        return preset
    changed = []
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value != field.default:
        text = "to".join(map(str, value)) if isinstance(value, tuple) else repr(value)
        changed.append(f"{field.name}_{text}")
    name = "-".join(changed)
    if len(name) > 100:  # file systems limit names; the digest makes long ones distinct
      name = f"{name[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name

  @property
  def splits(self) -> list[str]:
    """Names of the splits that contain people, in order."""
    return [split for split in SPLIT_START if self.people(split)]

  def people(self, split: str) -> range:
    """The numbers of the people of a split; splits do not overlap."""
    if split not in SPLIT_START:
      raise UserError(f"synth_pedes has no split {split!r}: choose from {', '.join(SPLIT_START)}")
    start = SPLIT_START[split]
    return range(start, start + getattr(self, f"{split}_people"))

  def replace(self, **overrides: Any) -> "Settings":
    """A copy with some fields changed; raises UserError for unknown fields and bad values."""
    defaults = {field.name: field.default for field in dataclasses.fields(self)}
    for name, value in overrides.items():
      if name not in defaults:
        raise UserError(f"synth_pedes has no setting {name!r}: choose from {', '.join(defaults)}")
      if isinstance(value, list):  # of a config file; names and hashes need tuples
        overrides[name] = value = tuple(value)
      _check_kind(name, value, defaults[name])
    return dataclasses.replace(self, **overrides)


_MOST_PEOPLE = 1_000_000  # the distance between two split starts
_RANGES = (
  ("train_people", 0, _MOST_PEOPLE),
  ("val_people", 0, _MOST_PEOPLE),
  ("test_people", 0, _MOST_PEOPLE),
  ("images_per_person", 1, 24),
  ("captions_per_image", 1, 16),
  ("height", 16, 1024),
  ("width", 8, 1024),
  ("seed", 0, 2**31 - 1),
  ("vague", 0, 1),
  ("rare_words", 0, 1),
  ("wrong", 0, 1),
  ("annotators", 0, 10_000),
  ("camera", 0, 2),
  ("occlusion", 0, 1),
  ("variety", 0.1, 5),
)


def _check_kind(name: str, value: object, default: object) -> None:
  """Counts must be whole and the rest numbers, or the same data would have two names."""
  if isinstance(default, tuple):
    good = isinstance(value, tuple) and all(isinstance(v, numbers.Integral) for v in value)
  elif isinstance(default, float):
    good = isinstance(value, numbers.Real)
  else:
    good = isinstance(value, numbers.Integral)
  _check(good, name, value, f"of kind {type(default).__name__}")


def _check(good: bool, name: str, value: object, wanted: str) -> None:
  if not good:
    raise UserError(f"synth_pedes setting {name} is {value!r}: it must be {wanted}")


PRESETS = {
  "default": Settings(),
  "small": Settings(train_people=400, val_people=40, test_people=40),
}
