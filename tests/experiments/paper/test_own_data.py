"""The second synthetic dataset has the format of a user's own data."""

import numpy as np
from PIL import Image

from dgia_jax.data import annotations
from experiments.paper import own_data


def test_the_drawn_files_can_be_read_as_a_custom_dataset(tmp_path):
  settings = own_data.SETTINGS.replace(train_people=3, val_people=1, test_people=2)
  assert own_data.write(settings, tmp_path) == 3 * (3 + 1 + 2)
  dataset = annotations.read_annotations([tmp_path / "annotations.json"])
  assert dataset.errors == dataset.notes == () and dataset.identities == "known"
  assert {len(record.captions) for record in dataset.records} == {2}
  assert all((tmp_path / "images" / record.path).is_file() for record in dataset.records)
  assert [sum(r.split == split for r in dataset.records) for split in ("train", "val", "test")] == [
    9, 3, 6
  ]  # fmt: skip


def test_unfamiliar_data_are_the_same_people_in_other_pictures_and_words(tmp_path):
  settings = own_data.SETTINGS.replace(train_people=2, val_people=1, test_people=1)
  own_data.write(settings, tmp_path / "plain")
  own_data.write(settings, tmp_path / "unfamiliar", unfamiliar=True)
  plain, unfamiliar = (
    annotations.read_annotations([tmp_path / name / "annotations.json"]).records
    for name in ("plain", "unfamiliar")
  )
  for one, other in zip(plain, unfamiliar, strict=True):
    assert (one.path, one.person, one.split) == (other.path, other.person, other.split)
    for caption, backwards in zip(one.captions, other.captions, strict=True):
      assert caption != backwards and sorted(caption) == sorted(backwards)
    images = [
      np.asarray(Image.open(tmp_path / name / "images" / one.path))
      for name in ("plain", "unfamiliar")
    ]
    np.testing.assert_array_equal(images[1], 255 - images[0][::-1])
