"""The knobs of synth_pedes: how many people, how many pictures, and how hard to tell them apart.

`Settings` is a plain frozen dataclass, so that the same data can be drawn with or without TFDS; two
settings that differ anywhere have different `name`s and therefore never share a folder.
"""

import dataclasses
import hashlib
import numbers

from dgia_jax.errors import UserError

# People are numbered from a fixed start in each split: splits never overlap, and the people of val
# and test stay the same when the number of training people changes.
SPLIT_START = {"train": 0, "val": 1_000_000, "test": 2_000_000}


@dataclasses.dataclass(frozen=True)
class Settings:
  """Everything that decides the pictures and captions. Validated on construction (`UserError`)."""

  # --- size ---
  train_people: int = 2700  # identities per split; 0 leaves the split out (train needs 1)
  val_people: int = 200
  test_people: int = 200
  images_per_person: int = 6  # each under another camera
  captions_per_image: int = 1
  height: int = 64  # pixels
  width: int = 32  # pixels
  seed: int = 0

  # --- difficulty ---
  # How many attributes a caption names (uniform between both ends). Fewer: captions say less, and
  # the captions of one person complete each other more.
  attributes_per_caption: tuple[int, int] = (4, 7)
  vague: float = 0.1  # probability that an attribute gets a broader word: "dark" for navy
  wrong: float = 0.05  # probability that an attribute is misnamed
  # Strength of pose, scale, background, light, colour cast, blur and noise: 0 none, 0.3 mild, 1 as
  # bad as surveillance gets, at most 2.
  camera: float = 0.25
  occlusion: float = 0.1  # probability that something stands in front of the person
  # How evenly attributes are spread: 1 as in a street, below 1 people resemble each other more
  # (towards everyone in black), above 1 less.
  variety: float = 1.4

  def __post_init__(self):
    # Config files hand over lists; the name and the hash need a tuple.
    object.__setattr__(self, "attributes_per_caption", tuple(self.attributes_per_caption))
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
  def name(self):
    """Folder name, made from the values that differ from the default ("default" if none does)."""
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
    if len(name) > 100:  # file systems limit names; the digest keeps long ones distinct
      name = f"{name[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name

  @property
  def splits(self):
    """Names of the splits that hold people, in order."""
    return [split for split in SPLIT_START if self.people(split)]

  def people(self, split):
    """The numbers of the people of a split: a `range`, disjoint between splits."""
    if split not in SPLIT_START:
      raise UserError(f"synth_pedes has no split {split!r}: choose from {', '.join(SPLIT_START)}")
    start = SPLIT_START[split]
    return range(start, start + getattr(self, f"{split}_people"))

  def replace(self, **overrides):
    """A copy with some fields changed; unknown names raise `UserError`."""
    known = [field.name for field in dataclasses.fields(self)]
    for field in overrides:
      if field not in known:
        raise UserError(f"synth_pedes has no setting {field!r}: choose from {', '.join(known)}")
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
  ("wrong", 0, 1),
  ("camera", 0, 2),
  ("occlusion", 0, 1),
  ("variety", 0.1, 5),
)


def _check_kind(name, value, default):
  """Counts must be whole numbers and the rest numbers, or the same data would get two names."""
  if isinstance(default, tuple):
    good = all(isinstance(v, numbers.Integral) for v in value)
  elif isinstance(default, float):
    good = isinstance(value, numbers.Real)
  else:
    good = isinstance(value, numbers.Integral)
  _check(good, name, value, f"of kind {type(default).__name__}")


def _check(good, name, value, wanted):
  if not good:
    raise UserError(f"synth_pedes setting {name} is {value!r}: it must be {wanted}")


PRESETS = {
  "default": Settings(),
  "small": Settings(train_people=400, val_people=40, test_people=40),
}
