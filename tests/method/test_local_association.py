import numpy as np
import pytest

from dgia_jax.method import local_association
from tests.helpers.golden_data import cases

pytestmark = pytest.mark.accelerator

ONE_THRESHOLD = [(n, c) for n, c in cases("p02_local") if c["thr"][0] == c["thr"][1]]


@pytest.mark.parametrize("number, case", ONE_THRESHOLD)
def test_local_targets_equal_reference(number, case):
  del number
  threshold = float(case["thr"][0])
  relations = local_association.local_relations(case["i"], case["t"], threshold)
  off_diagonal = ~np.eye(len(relations), dtype=bool)
  np.testing.assert_array_equal(
    np.asarray(relations)[off_diagonal], case["assoc"].astype(bool)[off_diagonal]
  )
  targets = local_association.local_targets(case["i"], case["t"], threshold)
  np.testing.assert_allclose(targets, case["q"], rtol=1e-5, atol=1e-7)


def test_modalities(rng):
  image, text = rng.normal(size=(2, 12, 3)).astype(np.float32)
  mine = lambda modality: np.asarray(local_association.local_relations(image, text, 0.5, modality))
  np.testing.assert_array_equal(mine("both"), mine("image") & mine("text"))
  assert mine("image").sum() > mine("both").sum() > 12
  np.testing.assert_array_equal(mine("none"), np.eye(12))
  with pytest.raises(ValueError, match="smell"):
    mine("smell")


def test_the_older_name_of_the_label_still_works(rng):
  image, text = rng.normal(size=(2, 6, 3)).astype(np.float32)
  expected = local_association.local_targets(image, text, threshold=0.2, relation_label=0.3)
  older = local_association.local_targets(image, text, threshold=0.2, softening=0.3)
  np.testing.assert_array_equal(older, expected)
