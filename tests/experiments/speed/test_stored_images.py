"""The comparison of stored images: it checks the pixels, and measures every form."""

import numpy as np
import pytest

from experiments.speed import stored_images


def test_every_form_is_measured():
  results = stored_images.measure((60, 24), count=2, repeats=1)
  assert results.keys() == stored_images.FORMS.keys()
  sizes = [kilobytes for kilobytes, _ in results.values()]
  assert 0 < sizes[0] < min(sizes[1:])  # a small JPEG file against 384 x 128 pixels without loss
  assert all(speed > 0 for _, speed in results.values())


def test_photographs_have_the_requested_size_and_texture():
  photograph = np.asarray(stored_images.photograph(0, (100, 40)), float)
  assert photograph.shape == (100, 40, 3)
  assert photograph.std() > stored_images.TEXTURE / 2
  assert (photograph == stored_images.photograph(0, (100, 40))).all()


def test_a_form_with_other_pixels_is_noticed(monkeypatch):
  lossy = {"JPEG": dict(format="JPEG", quality=50)}
  monkeypatch.setattr(stored_images, "FORMS", lossy)
  with pytest.raises(AssertionError):
    stored_images.measure((60, 24), count=1, repeats=1)
