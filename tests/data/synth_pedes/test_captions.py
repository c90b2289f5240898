"""Captions match the people they describe."""

import re

import numpy as np
import pytest

from dgia_jax.data.synth_pedes import captions, people, wording
from dgia_jax.data.synth_pedes.generate import draw_person
from tests.helpers.synthetic_people import HONEST, TINY, views_of


def test_captions_without_mistakes_name_only_true_and_visible_attributes():
  hidden = 0
  for number in range(40):
    for image, (person, _, seen) in enumerate(views_of(HONEST, number)):
      rng = np.random.default_rng([7, number, image])
      mentions = captions.choose(person, seen, HONEST, rng)
      may = captions.sayable(person, seen)
      assert mentions and len({m.attribute for m in mentions}) == len(mentions)
      for mention in mentions:
        assert mention.attribute in may and not mention.vague
        assert person.attributes[mention.attribute] == mention.value
      hidden += len(set(person.attributes) - set(may))
  assert hidden > 100  # otherwise nearly every view would show all attributes


def options_of(mention):
  """The words that may stand for a mention."""
  return wording.options(mention.attribute, mention.value, mention.vague, mention.rare)


@pytest.mark.parametrize("settings", [TINY, TINY.replace(rare_words=0.6)], ids=["usual", "rare"])
def test_sentences_contain_the_mentions_and_no_other_attribute(settings):
  # Nouns the sentences need when only a colour is named, and "she carries".
  plain = set(
    "a an the and is in with wearing dressed carrying holding has hair head shirt".split()
  )
  plain |= set(
    "underneath scarf hat top bottoms shoes bag object he she they carries carry".split()
  )
  plain |= {"seen", *wording.options("gender", "man", vague=True)}
  for number in range(60):
    for image, (person, _, seen) in enumerate(views_of(settings, number)):
      rng = np.random.default_rng([8, number, image])
      mentions = captions.choose(person, seen, settings, rng)
      sentence = captions.write(mentions, rng)
      rest = " " + re.sub(r"[.,]", "", sentence) + " "
      for mention in mentions:
        phrases = options_of(mention)
        assert any(f" {phrase} " in rest or not phrase for phrase in phrases), (mention, sentence)
      allowed = set(plain)
      for mention in mentions:
        for phrase in options_of(mention):
          allowed |= set(phrase.split())
      assert set(rest.split()) <= allowed, (sentence, set(rest.split()) - allowed)
      assert sentence.endswith(".") and "  " not in sentence and len(sentence.split()) <= 40


def test_wrong_and_vague_words_have_the_configured_frequency():
  settings = TINY.replace(wrong=0.3, vague=0.4, attributes_per_caption=(6, 6))
  wrong, vague, total = 0, 0, 0
  for number in range(80):
    for image, (person, _, seen) in enumerate(views_of(settings, number)):
      for mention in captions.choose(person, seen, settings, np.random.default_rng(image + number)):
        assert mention.value in people.values_of(mention.attribute)
        wrong += person.attributes[mention.attribute] != mention.value
        vague += mention.vague
        total += 1
  # A few attributes have no other value to be mistaken for, hence the wider lower margin.
  assert 0.25 < wrong / total < 0.33 and 0.36 < vague / total < 0.44


def test_rare_words_have_the_configured_frequency_and_change_nothing_else():
  settings = TINY.replace(attributes_per_caption=(1, 1))
  usual, rare = (
    draw_person(settings.replace(rare_words=share), "train", 3) for share in (0.0, 1.0)
  )
  assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(usual, rare, strict=True))
  settings = TINY.replace(rare_words=0.3, attributes_per_caption=(6, 6))
  mentions = [
    mention
    for number in range(80)
    for image, (person, _, seen) in enumerate(views_of(settings, number))
    for mention in captions.choose(person, seen, settings, np.random.default_rng(image + number))
  ]
  assert 0.26 < np.mean([mention.rare for mention in mentions]) < 0.34


def test_rare_words_are_not_among_the_usual_and_vague_ones():
  usual, rare = set(), set()
  for attribute in people.VOCABULARY:
    for value in people.values_of(attribute):
      usual |= {*wording.options(attribute, value), *wording.options(attribute, value, vague=True)}
      rare |= set(wording.options(attribute, value, rare=True))
      assert wording.options(attribute, value, vague=True, rare=True) == wording.options(
        attribute, value, vague=True
      )
  assert len(rare) > 100 and not rare & usual
  spoken = {word for phrase in usual for word in phrase.split()}
  assert {w for w in rare if w in spoken} == set()


def test_captions_name_the_configured_number_of_attributes():
  settings = TINY.replace(attributes_per_caption=(2, 3))
  counts = {len(captions.choose(p, seen, settings, np.random.default_rng(n)))
            for n in range(20) for p, _, seen in views_of(settings, n)}  # fmt: skip
  assert counts == {2, 3}


def test_every_value_has_words():
  for attribute in people.VOCABULARY:
    for value in people.values_of(attribute):
      assert all(wording.options(attribute, value))
      assert wording.options(attribute, value, vague=True)
      assert all(wording.options(attribute, value, rare=True))
