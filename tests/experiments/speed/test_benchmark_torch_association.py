"""The two PyTorch ways to associate are one computation."""

import numpy as np
import pytest

from experiments.speed.benchmark import workload as workload_lib

torch = pytest.importorskip("torch")


def test_loops_and_vectorised_are_equal():
  from experiments.speed.benchmark import torch_association as ways

  images, texts = (torch.from_numpy(x) for x in workload_lib.features(12, 32))
  bank = torch.from_numpy(workload_lib.bank(images, 50))
  labels = [f(images, texts, 0.7, 0.1) for f in (ways.local_labels_loops,
                                                 ways.local_labels_vectorised)]  # fmt: skip
  assert torch.equal(*labels) and (labels[0] == 0.1).any()
  (mined, looped), (also_mined, at_once) = (
    f(images, bank, 3, 0.7) for f in (ways.extended_loops, ways.extended_vectorised)
  )
  assert torch.equal(mined, also_mined) and 0 < len(mined) < 36
  np.testing.assert_allclose(looped, at_once, atol=1e-6)
  banks = bank.clone(), bank.clone()
  index = torch.tensor([3, 7, 1])
  ways.update_loops(banks[0], index, images[:3], 0.9)
  ways.update_vectorised(banks[1], index, images[:3], 0.9)
  torch.testing.assert_close(*banks)
  torch.testing.assert_close(banks[0][7], 0.9 * images[1] + 0.1 * bank[7])
