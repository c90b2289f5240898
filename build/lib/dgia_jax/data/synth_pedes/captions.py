"""Captions: what an annotator chose to say of what can be seen, how, and how wrongly.

Three steps, each a pure function of its inputs and a random generator: `sayable` lists the
attributes a view shows, `choose` picks some and makes some vague or wrong, `write` puts them into a
sentence.
"""

import dataclasses

from dgia_jax.data.synth_pedes import people, words

# attribute -> (the parts of the picture of which one must be seen, how readily people mention it).
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
# Values that people confuse; a wrong value comes from here half of the time.
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
_ANYONE = words.options("gender", "man", vague=True)


@dataclasses.dataclass(frozen=True)
class Mention:
  """One attribute as a caption says it (`value` may be wrong; `vague`: by a broader word)."""

  attribute: str
  value: str
  vague: bool = False


def sayable(person, seen):
  """Attributes of the person that the view shows, in a fixed order.

  Args:
    person: a `people.Person`.
    seen: names of the parts that can be seen, as returned by `drawing.draw`.
  """
  found = []
  for attribute, (parts, _) in _SAYABLE.items():
    if attribute in person.attributes and any(part in seen for part in parts):
      found.append(attribute)
  if person.attributes.get("hat.type") and "hair.style" in found and "hair" not in seen:
    found.remove("hair.style")  # under a hat, a bald head is anyone's guess
  return found


def choose(person, seen, settings, rng):
  """The mentions of one caption: a weighted choice without repetition, then slips of the pen."""
  found = sayable(person, seen)
  fewest, most = settings.attributes_per_caption
  count = int(rng.integers(fewest, most + 1))
  # Weighted sampling without replacement: the largest of u ** (1 / weight).
  weights = [_SAYABLE[attribute][1] for attribute in found]
  keys = [u ** (1 / w) for u, w in zip(rng.random(len(found)), weights, strict=True)]
  order = sorted(range(len(found)), key=lambda i: -keys[i])[:count]
  mentions = []
  for i in sorted(order):
    attribute, value = found[i], person.attributes[found[i]]
    slips = rng.random(3)
    if slips[0] < settings.wrong:
      value = _wrong(attribute, value, slips[2], rng)
    mentions.append(Mention(attribute, value, bool(slips[1] < settings.vague)))
  return mentions


def _wrong(attribute, value, near, rng):
  """Another value of the attribute, half of the time one that is easily taken for it."""
  # Nobody takes hair for a bald head, and a sentence could not give it a colour.
  others = [v for v in people.values_of(attribute) if v not in (value, "bald")]
  alike = [v for v in others if any(value in group and v in group for group in _CONFUSED)]
  pool = alike if alike and near < 0.5 else others
  return pool[rng.integers(len(pool))] if pool else value


def write(mentions, rng):
  """The sentence for some mentions: about 5 to 30 words, lower case, with a full stop.

  Nothing but the mentions is said: no colour, kind or gender slips in by the wording (pronouns
  follow the mentioned gender).
  """
  said = {m.attribute: _pick(rng, words.options(m.attribute, m.value, m.vague)) for m in mentions}
  gender = next((m.value for m in mentions if m.attribute == "gender" and not m.vague), None)
  subject = _joined([said.get("build"), said.get("gender") or _pick(rng, _ANYONE)])
  worn, carried = _worn(said), _carried(said, rng)
  if rng.random() < 0.4:
    worn = [worn[i] for i in rng.permutation(len(worn))]
  return _sentence(subject, gender, _listed(_looks(said)), _listed(worn), _listed(carried), rng)


def _sentence(subject, gender, looks, worn, carried, rng):
  wears = f"{_pick(rng, ('wearing', 'dressed in', 'in'))} {worn}" if worn else ""
  carries = f"{_pick(rng, ('carrying', 'with', 'holding'))} {carried}" if carried else ""
  with_looks = f"with {looks}" if looks else ""
  order = rng.integers(4)
  if order == 0 or not worn:  # one sentence, what is carried last
    text = _joined([_a(subject), with_looks, wears]) + (f", {carries}" if carries else "")
  elif order == 1:  # two sentences
    text = _joined([f"the {subject}", f"has {looks} and" if looks else "", "is", wears])
    pronoun = {"man": "he carries", "woman": "she carries"}.get(gender, "they carry")
    text += f". {pronoun} {carried}" if carried else ""
  elif order == 2:  # clothes first
    seen = f"is carrying {carried}" if carried else "is seen"
    text = _joined([f"wearing {worn},", _a(subject), with_looks, seen])
  else:  # what is carried before the clothes
    before = _joined([with_looks, carries])
    text = _joined([_a(subject), f"{before}," if before else "", wears])
  return f"{text}."


def _looks(said):
  """Noun phrases of hair and face."""
  style, colour = said.get("hair.style"), said.get("hair.colour")
  phrases = []
  if style in words.options("hair.style", "bald"):
    phrases.append(f"a {style} head")
  elif style in words.HAIR_SUFFIXES:
    phrases.append(_joined([colour, "hair", style]))
  elif style or colour:
    phrases.append(_joined([style, colour, "hair"]))
  return [phrase for phrase in (*phrases, said.get("face.type")) if phrase]


def _worn(said):
  """Noun phrases of what is worn, from what strikes most to what strikes least."""
  upper = _thing(said, "upper", extra=said.get("upper.pattern"), accent=said.get("upper.accent"))
  inner = said.get("inner.colour")
  if inner:
    under = f"{_a(inner)} shirt underneath"
    upper = f"{upper} with {under}" if upper else under
  lower = _thing(said, "lower", extra=said.get("lower.pattern"))
  scarf = f"{_a(said['scarf.colour'])} scarf" if "scarf.colour" in said else ""
  phrases = [upper, lower, _thing(said, "shoes"), _thing(said, "hat"), scarf]
  return [phrase for phrase in phrases if phrase]


def _carried(said, rng):
  """Noun phrases of bag and item, in either order."""
  phrases = [phrase for phrase in (_thing(said, "bag"), _thing(said, "item")) if phrase]
  return phrases[::-1] if rng.random() < 0.5 else phrases


def _thing(said, part, extra=None, accent=None):
  """Noun phrase of a part, as "a black and white striped shirt"; "" when nothing is said of it."""
  colour, kind = said.get(f"{part}.colour"), said.get(f"{part}.type")
  if not (colour or kind or extra or accent):
    return ""
  colours = " and ".join(c for c in (colour, accent) if c)
  noun = kind or words.BROAD_NOUN[part]
  phrase = _joined([colours, extra, noun])
  return phrase if noun in words.PLURAL_NOUNS else _a(phrase)


def _listed(phrases):
  """The phrases joined as in "a, b and c"."""
  if len(phrases) < 2:
    return phrases[0] if phrases else ""
  return ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _a(phrase):
  return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _joined(parts):
  return " ".join(part for part in parts if part)


def _pick(rng, choices):
  return choices[rng.integers(len(choices))]
