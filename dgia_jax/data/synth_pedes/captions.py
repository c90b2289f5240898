"""Captions that imitate annotators: incomplete, sometimes vague, sometimes wrong.

Three steps, each a function of its inputs and a random generator: `sayable` lists the attributes
that a view shows, `choose` selects some and makes some vague or wrong, `write` puts them into a
sentence.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from dgia_jax.data.synth_pedes import people, wording
from dgia_jax.data.synth_pedes.annotators import Annotator
from dgia_jax.data.synth_pedes.people import Person
from dgia_jax.data.synth_pedes.settings import Settings

# attribute -> (parts, one of which must be visible; weight with which annotators mention it)
_SAYABLE = {
  "gender": (("hair", "body"), 6.0),
  "build": (("upper",), 0.8),
  "hair.style": (("hair", "body"), 1.6),
  "hair.colour": (("hair",), 1.3),
  "face.type": (("face",), 1.6),
  "hat.type": (("hat",), 2.0),
  "hat.colour": (("hat",), 1.3),
  "scarf.colour": (("scarf",), 2.0),
  "upper.type": (("upper",), 5.0),
  "upper.colour": (("upper",), 9.0),
  "upper.pattern": (("pattern", "print"), 4.0),
  "upper.accent": (("pattern", "print"), 2.5),
  "inner.colour": (("inner",), 1.5),
  "lower.type": (("lower",), 4.5),
  "lower.colour": (("lower",), 8.0),
  "lower.pattern": (("side stripe",), 1.4),
  "shoes.type": (("shoes",), 1.4),
  "shoes.colour": (("shoes",), 1.6),
  "bag.type": (("bag",), 3.2),
  "bag.colour": (("bag",), 1.8),
  "item.type": (("item",), 2.6),
  "item.colour": (("item",), 1.5),
}
# Values that people confuse; half of the wrong values are taken from these sets.
_CONFUSED = (
  {"black", "navy", "dark green", "brown", "maroon"},
  {"white", "beige", "grey", "sky blue"},
  {"red", "orange", "pink", "maroon"},
  {"blue", "navy", "purple", "teal"},
  {"green", "dark green", "teal"},
  {"yellow", "orange", "beige"},
  {"t-shirt", "shirt", "tank top"},
  {"sweater", "hoodie", "jacket", "coat"},
  {"trousers", "jeans", "leggings"},
  {"skirt", "long skirt", "shorts"},
  {"sneakers", "leather shoes", "boots"},
  {"handbag", "shoulder bag"},
  {"striped", "checked"},
  {"long", "ponytail"},
  {"short", "bun"},
)
_ONE = Annotator()
_ANYONE = wording.options("gender", "man", vague=True)


@dataclasses.dataclass(frozen=True)
class Mention:
  """One attribute in a caption: its value, which may be wrong, and which words may name it."""

  attribute: str
  value: str
  vague: bool = False  # a broader word, which takes precedence over a rare one
  rare: bool = False  # a word of `rare_words`


def sayable(person: Person, seen: Collection[str]) -> list[str]:
  """Attributes of the person that the view shows, in a fixed order.

  Args:
    person: whose attributes.
    seen: names of the visible parts, as returned by `drawing.draw`.
  """
  visible = []
  for attribute, (parts, _) in _SAYABLE.items():
    if attribute in person.attributes and any(part in seen for part in parts):
      visible.append(attribute)
  if person.attributes.get("hat.type") and "hair.style" in visible and "hair" not in seen:
    visible.remove("hair.style")  # a hat hides whether the head is bald
  return visible


def choose(
  person: Person,
  seen: Collection[str],
  settings: Settings,
  rng: np.random.Generator,
  annotator: Annotator = _ONE,
) -> list[Mention]:
  """Selects the mentions of one caption: a weighted choice without repetition, then mistakes."""
  visible = sayable(person, seen)
  fewest, most = settings.attributes_per_caption
  count = int(rng.integers(fewest, most + 1))
  # Weighted sampling without replacement: the largest of u ** (1 / weight).
  weights = [_SAYABLE[name][1] * annotator.interest(name) for name in visible]
  keys = [u ** (1 / w) for u, w in zip(rng.random(len(visible)), weights, strict=True)]
  order = sorted(range(len(visible)), key=lambda i: -keys[i])[:count]
  mentions = []
  for i in sorted(order):
    attribute, value = visible[i], person.attributes[visible[i]]
    mistakes = rng.random(3)
    if mistakes[0] < settings.wrong:
      value = _wrong(attribute, value, mistakes[2], rng)
    vague = bool(mistakes[1] < settings.vague)
    # Drawn only if needed, so that captions without rare words stay what they were.
    rare = bool(settings.rare_words and rng.random() < settings.rare_words)
    mentions.append(Mention(attribute, value, vague, rare))
  return mentions


def _wrong(attribute: str, value: str, near: float, rng: np.random.Generator) -> str:
  """Another value of the attribute; if `near` is below 0.5, one that people confuse with it."""
  # Hair is never mistaken for a bald head, and a sentence could not give it a colour.
  others = [v for v in people.values_of(attribute) if v not in (value, "bald")]
  similar = [v for v in others if any(value in group and v in group for group in _CONFUSED)]
  pool = similar if similar and near < 0.5 else others
  return pool[rng.integers(len(pool))] if pool else value


def write(
  mentions: Sequence[Mention], rng: np.random.Generator, annotator: Annotator = _ONE
) -> str:
  """Writes the sentence for some mentions: about 5 to 30 words, lower case, with a full stop.

  It contains no other attribute. Pronouns follow the mentioned gender, if any.
  """
  pick = functools.partial(annotator.pick, rng=rng)
  phrases = {
    m.attribute: pick(wording.options(m.attribute, m.value, m.vague, m.rare)) for m in mentions
  }
  gender = next((m.value for m in mentions if m.attribute == "gender" and not m.vague), None)
  subject = _joined([phrases.get("build"), phrases.get("gender") or pick(_ANYONE)])
  worn, carried = _worn(phrases), _carried(phrases, rng)
  if rng.random() < 0.4:
    worn = [worn[i] for i in rng.permutation(len(worn))]
  return _sentence(subject, gender, _listed(_looks(phrases)), _listed(worn), _listed(carried), pick)


def _sentence(
  subject: str, gender: str | None, looks: str, worn: str, carried: str, pick: Callable
) -> str:
  wears = f"{pick(('wearing', 'dressed in', 'in'))} {worn}" if worn else ""
  carries = f"{pick(('carrying', 'with', 'holding'))} {carried}" if carried else ""
  with_looks = f"with {looks}" if looks else ""
  order = pick(range(4))
  if order == 0 or not worn:  # one sentence, carried things last
    text = _joined([_a(subject), with_looks, wears]) + (f", {carries}" if carries else "")
  elif order == 1:  # two sentences
    text = _joined([f"the {subject}", f"has {looks} and" if looks else "", "is", wears])
    pronoun = {"man": "he carries", "woman": "she carries"}.get(gender, "they carry")
    text += f". {pronoun} {carried}" if carried else ""
  elif order == 2:  # clothes first
    seen = f"is carrying {carried}" if carried else "is seen"
    text = _joined([f"wearing {worn},", _a(subject), with_looks, seen])
  else:  # carried things before the clothes
    before = _joined([with_looks, carries])
    text = _joined([_a(subject), f"{before}," if before else "", wears])
  return f"{text}."


def _looks(mentioned: Mapping[str, str]) -> list[str]:
  """Noun phrases of hair and face."""
  style, colour = mentioned.get("hair.style"), mentioned.get("hair.colour")
  phrases = []
  if style in wording.BALD:
    phrases.append(f"a {style} head")
  elif style in wording.HAIR_SUFFIXES:
    phrases.append(_joined([colour, "hair", style]))
  elif style or colour:
    phrases.append(_joined([style, colour, "hair"]))
  return [phrase for phrase in (*phrases, mentioned.get("face.type")) if phrase]


def _worn(mentioned: Mapping[str, str]) -> list[str]:
  """Noun phrases of the clothes, the most striking first."""
  upper = _thing(
    mentioned, "upper", extra=mentioned.get("upper.pattern"), accent=mentioned.get("upper.accent")
  )
  inner = mentioned.get("inner.colour")
  if inner:
    under = f"{_a(inner)} shirt underneath"
    upper = f"{upper} with {under}" if upper else under
  lower = _thing(mentioned, "lower", extra=mentioned.get("lower.pattern"))
  scarf = f"{_a(mentioned['scarf.colour'])} scarf" if "scarf.colour" in mentioned else ""
  phrases = [upper, lower, _thing(mentioned, "shoes"), _thing(mentioned, "hat"), scarf]
  return [phrase for phrase in phrases if phrase]


def _carried(mentioned: Mapping[str, str], rng: np.random.Generator) -> list[str]:
  """Noun phrases of bag and item, in either order."""
  phrases = [phrase for phrase in (_thing(mentioned, "bag"), _thing(mentioned, "item")) if phrase]
  return phrases[::-1] if rng.random() < 0.5 else phrases


def _thing(
  mentioned: Mapping[str, str], part: str, extra: str | None = None, accent: str | None = None
) -> str:
  """Noun phrase of a part, as "a black and white striped shirt"; "" if it is not mentioned."""
  colour, kind = mentioned.get(f"{part}.colour"), mentioned.get(f"{part}.type")
  if not (colour or kind or extra or accent):
    return ""
  colours = " and ".join(c for c in (colour, accent) if c)
  noun = kind or wording.BROAD_NOUN[part]
  phrase = _joined([colours, extra, noun])
  return phrase if noun in wording.PLURAL_NOUNS else _a(phrase)


def _listed(phrases: Sequence[str]) -> str:
  """Joins phrases as in "a, b and c"."""
  if len(phrases) < 2:
    return phrases[0] if phrases else ""
  return ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _a(phrase: str) -> str:
  return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _joined(parts: Sequence[str | None]) -> str:
  return " ".join(part for part in parts if part)
