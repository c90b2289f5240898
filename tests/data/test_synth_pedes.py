"""synth_pedes: deterministic people and images, captions that match them, storage."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dgia_jax.data.synth_pedes import (
  Settings,
  cameras,
  captions,
  drawing,
  generate,
  people,
  wording,
)
from dgia_jax.data.synth_pedes.annotators import Annotator, Habitual, annotator_of
from dgia_jax.data.synth_pedes.builder import SynthPedes
from dgia_jax.data.synth_pedes.generate import draw_person
from dgia_jax.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TINY = Settings(train_people=6, val_people=2, test_people=3, images_per_person=4)
HONEST = TINY.replace(wrong=0.0, vague=0.0, attributes_per_caption=(2, 30))


def views_of(settings, number):
  """Yields (person, view, names of the visible parts) for every view of a person."""
  person = people.sample_person(settings.seed, number, settings.variety)
  for view in cameras.sample_views(settings, number):
    yield person, view, drawing.draw(person, view, settings.height, settings.width)[1]


def same(a, b):
  texts = ("captions", "person_id", "image_path")
  return np.array_equal(a["image"], b["image"]) and all(a[k] == b[k] for k in texts)


# --- settings -------------------------------------------------------------------------------------


def test_names_list_the_differences_from_the_defaults():
  changed = [
    dict(seed=1), dict(vague=0.3), dict(wrong=0.3), dict(attributes_per_caption=(1, 2)),
    dict(train_people=100), dict(height=128, width=64), dict(camera=0.75), dict(variety=0.5),
  ]  # fmt: skip
  names = [Settings(**change).name for change in changed]
  assert len(set(names)) == len(names) and "default" not in names
  assert Settings().name == "default"
  assert Settings(vague=0.3).name == "vague_0.3"
  assert Settings().replace(attributes_per_caption=[1, 2]).name == "attributes_per_caption_1to2"


def test_long_names_are_shortened_and_stay_distinct():
  many = dict(train_people=10, val_people=20, test_people=30, images_per_person=5, height=96)
  many |= dict(captions_per_image=2, wrong=0.3, vague=0.31, occlusion=0.11)
  one, other = Settings(**many, seed=1).name, Settings(**many, seed=2).name
  assert one != other and len(one) < 120


@pytest.mark.parametrize(
  "change",
  [
    dict(train_people=0),
    dict(wrong=1.5),
    dict(height=64.0),
    dict(attributes_per_caption=(3, 2)),
    dict(attributes_per_caption=3),
    dict(attributes_per_caption=(0, 2)),
    dict(images_per_person=25),
    dict(no_such=1),
  ],
)
def test_bad_settings_are_named(change):
  with pytest.raises(UserError, match=next(iter(change))):
    Settings().replace(**change)


def test_splits_share_no_person_and_test_stays_when_train_grows():
  settings = Settings()
  ranges = [set(settings.people(split)) for split in settings.splits]
  assert len(set.union(*ranges)) == sum(map(len, ranges)) == settings.train_people + 400
  assert settings.people("test") == settings.replace(train_people=9).people("test")
  assert settings.replace(val_people=0).splits == ["train", "test"]
  with pytest.raises(UserError, match="valid"):
    generate(settings, "valid")


# --- people ---------------------------------------------------------------------------------------


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


# --- images ---------------------------------------------------------------------------------------


def test_records_are_complete_and_deterministic():
  settings = TINY.replace(captions_per_image=2)
  first, again = list(generate(settings, "train")), list(generate(settings, "train"))
  assert len(first) == 24 and all(same(a, b) for a, b in zip(first, again, strict=True))
  assert all(r["image"].shape == (64, 32, 3) and r["image"].dtype == np.uint8 for r in first)
  assert all(len(r["captions"]) == 2 for r in first)
  assert len({r["image_path"] for r in first}) == len(first)
  assert [r["person_id"] for r in first] == [n for n in range(6) for _ in range(4)]
  other = next(generate(settings.replace(seed=1), "train"))
  assert not np.array_equal(other["image"], first[0]["image"])


def test_a_worker_that_cannot_start_is_reported(monkeypatch):
  monkeypatch.setattr(sys, "executable", shutil.which("false"))
  many = range(1_000_000)  # a task that no pipe holds
  with pytest.raises(UserError, match=r"was killed \(exit code 1\)"):
    next(generate(TINY, "train", workers=1, people=many))


def test_workers_change_nothing():
  settings = TINY.replace(train_people=60, images_per_person=1)  # three chunks
  alone = list(generate(settings, "train", workers=0))
  shared = list(generate(settings, "train", workers=2))
  assert len(alone) == 60 and all(same(a, b) for a, b in zip(alone, shared, strict=True))


def test_a_person_looks_different_under_each_camera():
  images = [r["image"].astype(float) for r in draw_person(TINY, "train", 1)]
  for i, a in enumerate(images):
    assert a.std() > 10
    assert all(np.abs(a - b).mean() > 8 for b in images[:i])


def test_camera_strength_zero_leaves_one_clean_view():
  still = TINY.replace(camera=0.0, occlusion=0.0)
  images = [r["image"].astype(float) for r in draw_person(still, "train", 2)]
  # The site's plain wall and floor still differ in brightness; the person's middle does not.
  assert all(np.abs(images[0] - b)[20:40, 14:18].mean() < 3 for b in images[1:])


def test_larger_images_show_the_same_scene():
  person = people.sample_person(0, 4)
  view = cameras.sample_views(TINY.replace(camera=0.3, occlusion=0.0), 4)[0]
  small, seen = drawing.draw(person, view, 64, 32)
  large, _ = drawing.draw(person, view, 192, 96)
  assert large.shape == (192, 96, 3) and "upper" in seen
  shrunk = large.reshape(64, 3, 32, 3, 3).mean((1, 3))
  assert np.abs(shrunk - small).mean() < 12


def test_hidden_parts_are_not_visible():
  front_print, back_pack = [], []
  for number in range(400):
    person = people.sample_person(0, number)
    printed = person.attributes.get("upper.pattern") == "printed"
    pack = person.attributes.get("bag.type") == "backpack"
    if not (printed or pack) or person.attributes["hair.style"] == "long":
      continue
    for view in cameras.sample_views(Settings(occlusion=0.0), number):
      seen = drawing.draw(person, view, 64, 32)[1]
      if printed and np.cos(view.yaw) < -0.5:
        assert "print" not in seen
      if printed and np.cos(view.yaw) > 0.95 and view.up > 0:
        front_print.append("print" in seen)
      if pack and np.cos(view.yaw) > 0.95:
        assert "bag" not in seen
      if pack and np.cos(view.yaw) < -0.5:
        back_pack.append("bag" in seen)
  assert len(front_print) > 10 and np.mean(front_print) > 0.8
  assert len(back_pack) > 20 and np.mean(back_pack) > 0.9


# --- captions -------------------------------------------------------------------------------------


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


# --- annotators -----------------------------------------------------------------------------------


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


# --- storage --------------------------------------------------------------------------------------


def test_build_and_read_back(tmp_path, monkeypatch):
  from dgia_jax.data.synth_pedes import builder as module

  make_builder = module.make_builder
  monkeypatch.setattr(module, "_SHARD_IMAGES", 8)  # two people each: 2 + 2 + 1
  change = dict(
    train_people=5, val_people=2, test_people=2, images_per_person=4, captions_per_image=2,
    height=32, width=16,
  )  # fmt: skip
  builder = make_builder(str(tmp_path), **change)
  builder.download_and_prepare()
  drawn = {r["image_path"]: r for r in generate(Settings(**change), "train")}
  source = builder.as_data_source("train")
  assert len(source) == 20 and len(builder.as_data_source("test")) == 8
  assert len(list(pathlib.Path(builder.data_dir).glob("*-train.array_record-*"))) == 3
  assert [example["image_path"].decode() for example in source] == list(drawn)
  for example in source:
    record = drawn.pop(example["image_path"].decode())
    assert np.array_equal(example["image"], record["image"])  # PNG keeps every pixel
    assert [c.decode() for c in example["captions"]] == record["captions"]
    assert example["person_id"] == record["person_id"]
  assert not drawn and "tensorflow" not in sys.modules

  files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.array_record*")}
  assert files
  make_builder(str(tmp_path), **change).download_and_prepare()
  assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.array_record*")}
  assert make_builder(str(tmp_path), **change, seed=1).data_dir != builder.data_dir


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
  from dgia_jax.data.synth_pedes import builder as module

  def broken(settings, split, workers, people):
    yield from list(generate(settings, split, workers, people))[:3]
    raise KeyboardInterrupt

  small = dict(train_people=3, val_people=0, test_people=1)
  with monkeypatch.context() as patch:
    patch.setattr(module, "generate", broken)
    with pytest.raises(KeyboardInterrupt):
      module.make_builder(str(tmp_path), **small).download_and_prepare()
  assert not list(tmp_path.rglob("*.array_record*")) and not list(tmp_path.rglob("*info.json"))
  module.make_builder(str(tmp_path), **small).download_and_prepare()
  assert len(module.make_builder(str(tmp_path), **small).as_data_source("train")) == 18


def test_builder_names_and_mistakes(tmp_path):
  from dgia_jax.data.synth_pedes.builder import make_builder

  assert make_builder(str(tmp_path)).builder_config.name == "default"
  assert make_builder(str(tmp_path), preset="small").builder_config.name == "small"
  small = dict(train_people=400, val_people=40, test_people=40)
  assert make_builder(str(tmp_path), **small).builder_config.name == "small"
  with pytest.raises(UserError, match="tiny"):
    make_builder(str(tmp_path), preset="tiny")
  with pytest.raises(UserError, match="vagueness"):
    make_builder(str(tmp_path), vagueness=0.1)


def test_needs_numpy_and_pillow_only():
  """The records can be drawn where TFDS, JAX and TensorFlow cannot be imported."""
  program = """
import sys
for name in ("tensorflow_datasets", "tensorflow", "jax", "grain", "absl", "ml_collections"):
  sys.modules[name] = None
from dgia_jax.data.synth_pedes import Settings, generate
settings = Settings(train_people=1, val_people=1, test_people=30)
print(len(list(generate(settings, "test", workers=1))))
"""
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
  )
  assert done.stdout.strip() == "180", done.stderr


def test_defaults_and_the_version_of_built_data_change_together():
  """Otherwise data built with older defaults would be mistaken for the new data."""
  defaults = Settings(
    train_people=2700, val_people=200, test_people=200, images_per_person=6, captions_per_image=1,
    height=64, width=32, seed=0, attributes_per_caption=(4, 7), vague=0.1, wrong=0.05, annotators=0,
    camera=0.25, occlusion=0.1, variety=1.4,
  )  # fmt: skip
  assert (str(SynthPedes.VERSION), Settings()) == ("1.3.0", defaults)
