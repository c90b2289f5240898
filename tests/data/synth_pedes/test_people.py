"""Sampled people: their attributes."""

from dgia_jax.data.synth_pedes import Settings, people


def test_people_have_known_values_and_nothing_impossible():
  for number in range(300):
    a = people.sample_person(3, number).attributes
    for name, value in a.items():
      assert value in people.values_of(name), (name, value)
    assert ("upper.type" in a) and ("lower.type" in a) == (a["upper.type"] != "dress")
    assert ("bag.colour" in a) == ("bag.type" in a) and ("hat.colour" in a) == ("hat.type" in a)
    assert ("hair.colour" in a) == (a["hair.style"] != "bald")
    assert ("upper.accent" in a) == ("upper.pattern" in a)
    assert a.get("upper.accent") != a["upper.colour"]


def test_people_share_attributes_but_are_mostly_unique():
  everyone = [people.sample_person(0, n).attributes for n in Settings().people("test")]
  assert len({tuple(sorted(a.items())) for a in everyone}) >= 0.97 * len(everyone)
  clothes = [(a["gender"], a["upper.colour"], a["upper.type"]) for a in everyone]
  assert len(set(clothes)) < 0.75 * len(clothes)


def test_less_variety_makes_people_more_similar():
  def kinds(variety):
    return len({people.sample_person(0, n, variety).attributes["upper.colour"] for n in range(60)})

  assert kinds(0.2) < kinds(1.0) <= kinds(5.0)
