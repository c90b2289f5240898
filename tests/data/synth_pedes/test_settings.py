"""Settings of synthetic people, and their names."""

import pytest

from dgia_jax.data.synth_pedes import Settings, generate
from dgia_jax.errors import UserError


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
