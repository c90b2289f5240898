"""Which grid a position table has that no config describes."""

import numpy as np
import pytest

from dgia_jax.models.pretrained import position_embedding, position_fit

RELEASED, OTHER = "model.base_model.", "state_dict.module."


def table(num_patches):
  return np.random.default_rng(0).standard_normal((1 + num_patches, 3), np.float32)


@pytest.mark.parametrize(
  "num_patches, stated, prefix, grid, trained",
  [
    (196, 14, "", (28, 7), (14, 14)),  # OpenAI's ViT-B/16 for images of 448 x 112
    (196, 0, "", (28, 7), (14, 14)),  # the same model of open_clip
    (196, 0, RELEASED, (28, 7), (28, 7)),
    (196, 14, OTHER, (28, 7), (14, 14)),
    (196, 0, OTHER, (28, 7), None),
    (196, 0, OTHER, (14, 14), (14, 14)),
    (196, 0, OTHER, (24, 8), (14, 14)),
    (192, 0, RELEASED, (24, 8), (24, 8)),  # no square, so it is the model's
    (192, 0, "", (24, 8), (24, 8)),
    (192, 14, "", (24, 8), (24, 8)),  # resized after it was published
    (192, 0, "", (14, 14), None),
    (0, 0, "", (28, 7), None),
  ],
)
def test_the_grid_of_a_file(num_patches, stated, prefix, grid, trained):
  original = table(num_patches)
  fit = lambda: position_fit.from_file(original, 1, stated, prefix, grid)
  if trained is None:
    with pytest.raises(ValueError, match=f"has {1 + num_patches} positions, which "):
      fit()
  elif trained == grid:
    np.testing.assert_array_equal(fit(), original)
  else:
    np.testing.assert_array_equal(fit(), position_embedding.resize(original, trained, grid))


@pytest.mark.parametrize(
  "resolution, side",
  [(None, 0), (np.array(224), 14), (np.array([224]), 14), (np.array([1, 2]), 0), (np.zeros(1), 0)],
)
def test_the_stated_side(resolution, side):
  assert position_fit.stated_side(resolution, 16) == side
