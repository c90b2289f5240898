"""PyTorch's views distort every image of a batch in its own way."""

import pytest
from ml_collections import ConfigDict

from dgia_jax import config as config_lib
from dgia_jax.models import pixels

torch = pytest.importorskip("torch")


def settings(**changed) -> ConfigDict:
  nothing = {"flip_prob": 0.0, "padding": 0, "erase_prob": 0.0}
  chosen = config_lib.base().augment
  chosen.update(nothing | changed)
  return chosen


@pytest.fixture
def images():
  torch.manual_seed(0)
  return torch.randint(1, 256, (16, 3, 24, 12), dtype=torch.uint8)


def test_flips(images):
  from experiments.speed.benchmark import torch_views

  normal = torch_views.normalize(images)
  torch.testing.assert_close(torch_views.distort(images, settings()), normal)
  flipped = torch_views.distort(images, settings(flip_prob=1.0))
  torch.testing.assert_close(flipped, normal.flip(3))


def test_shifts_are_windows_of_padded_images(images):
  from experiments.speed.benchmark import torch_views

  padded = torch_views.normalize(torch.nn.functional.pad(images, (2,) * 4))
  shifted = torch_views.distort(images, settings(padding=2))
  places = []
  for row, image in enumerate(shifted):
    windows = {
      (top, left): padded[row, :, top : top + 24, left : left + 12]
      for top in range(5)
      for left in range(5)
    }
    places += [place for place, window in windows.items() if torch.allclose(image, window)]
  assert len(places) == len(images) and len(set(places)) > 8


def test_one_rectangle_of_each_image_is_erased(images):
  from experiments.speed.benchmark import torch_views

  erased = torch_views.distort(images, settings(erase_prob=1.0))
  fill = torch.tensor(pixels.CLIP.fill())[:, None, None]
  changed = (erased != torch_views.normalize(images)).any(dim=1)
  boxes = set()
  for image, where in zip(erased, changed, strict=True):
    assert torch.equal(image[:, where], fill.expand(image.shape)[:, where])
    rows, columns = where.any(dim=1).nonzero().flatten(), where.any(dim=0).nonzero().flatten()
    assert where.sum() == len(rows) * len(columns) > 0
    boxes.add((int(rows[0]), int(columns[0]), len(rows), len(columns)))
  assert len(boxes) > 8
