"""Position tables are resized to other grids as the released code and torch do."""

import numpy as np
import pytest

from dgia_jax.models.pretrained import position_embedding
from tests.helpers import golden_data

CASES = list(golden_data.cases("p12_posembed"))


@pytest.mark.parametrize("number, case", CASES, ids=[str(number) for number, _ in CASES])
def test_resize_equals_the_released_code(number, case):
  side, ny, nx = map(int, case["grid_ny_nx"])
  resized = position_embedding.resize(case["in"], (side, side), (ny, nx))
  assert resized.dtype == np.float32
  # The reference interpolates in float64, we return float32.
  np.testing.assert_allclose(resized, case["out_f64"], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(resized[0], case["in"][0])


def test_resize_equals_the_loaded_reference_model():
  table = golden_data.arrays("p11_ckpt_B")["visual.positional_embedding"].astype(np.float32)
  expected = golden_data.arrays("p11_fwd_B")["visual.positional_embedding_after_load"]
  np.testing.assert_allclose(position_embedding.resize(table, (4, 4), (6, 2)), expected, atol=1e-6)


@pytest.mark.parametrize("grid", [(24, 8), (8, 4), (4, 8), (27, 9), (12, 7), (1, 5), (6, 6)])
def test_a_square_table_represents_any_grid(grid):
  table = np.random.default_rng(0).standard_normal((1 + grid[0] * grid[1], 5), np.float32)
  square = position_embedding.to_square(table, grid)
  assert square.shape == (1 + max(grid) ** 2, 5)
  np.testing.assert_allclose(position_embedding.from_square(square, grid), table, atol=3e-6)
  # Large values would be amplified by another interpolation.
  assert np.abs(square).max() < 3 * np.abs(table).max()


@pytest.mark.parametrize("grid", [(24, 8), (8, 4), (12, 7), (5, 12)])
def test_from_square_is_torchs_bicubic_interpolation(grid):
  torch = pytest.importorskip("torch")
  table = np.random.default_rng(0).standard_normal((1 + 12 * 12, 5), np.float32)
  patches = torch.tensor(table[1:]).reshape(1, 12, 12, 5).permute(0, 3, 1, 2)
  resized = torch.nn.functional.interpolate(patches, size=grid, mode="bicubic", align_corners=False)
  expected = resized.permute(0, 2, 3, 1).reshape(-1, 5).numpy()
  np.testing.assert_allclose(position_embedding.from_square(table, grid)[1:], expected, atol=1e-5)
