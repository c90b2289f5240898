"""Records and drawings are deterministic, and cameras change them."""

import shutil
import sys

import numpy as np
import pytest

from dgia_jax.data.synth_pedes import Settings, cameras, drawing, generate, people
from dgia_jax.data.synth_pedes.generate import draw_person
from dgia_jax.errors import UserError
from tests.helpers.synthetic_people import TINY, same


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
