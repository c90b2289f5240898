import functools

import jax
import numpy as np
import optax
import pytest

from dgia_jax import config, sharding
from dgia_jax.method import (
  compilation,
  global_association,
  memory_bank,
  mining,
  strict_mining,
  train_state,
  train_step,
)
from dgia_jax.method.augment import Masking
from dgia_jax.models import pixels
from dgia_jax.models.pretrained import params as params_lib
from dgia_jax.models.pretrained import tensor_names
from tests.helpers import compiled_bank, model_b, recipe
from tests.helpers.golden_data import arrays, assert_loss, description
from tests.helpers.meshes import mesh_of

LOSSES = {"itc": "itc_loss", "local": "sdm_loss", "global": "mem_loss", "consistency": "cons_loss"}
# (mesh, parts of the batch that are encoded one after another)
SLOWER = pytest.mark.integration
WAYS = [
  pytest.param((1, 1, 1), 1, marks=pytest.mark.accelerator),
  pytest.param((1, 1, 1), 4, marks=[pytest.mark.accelerator, SLOWER]),
  pytest.param((2, 2, 2), 1, marks=SLOWER),
  pytest.param((2, 2, 2), 2, marks=SLOWER),
]


@pytest.fixture
def given_views(monkeypatch):
  """The step takes both views from the batch: the reference fixed its random draws as arrays."""
  monkeypatch.setattr(
    train_step, "two_views", lambda key, images, tokens, **settings: (images, tokens)
  )


class Reference:
  """The reference's tiny model and training set, in our step."""

  def __init__(self, name, mesh_shape, tx, accumulation=1, **weights):
    self.data = arrays(name)
    self.mesh = mesh_of(*mesh_shape)
    graphdef, params = model_b.reference_model()
    self.config = config.base()
    self.config.loss.weights.update(weights)
    self.config.gradient_accumulation = accumulation
    init = train_state.initializer(lambda: params, tx, num_pairs=24, feature_dim=512)
    self.state = train_state.create(self.mesh, init)
    self._tx, self._graphdef, self._compiled = tx, graphdef, None

  def encode(self, params, pixels, tokens):
    from flax import nnx

    model = nnx.merge(self._graphdef, params)
    return model.encode_image(pixels), model.encode_text(tokens)

  def batch(self, index, images=None):
    index = np.asarray(index, np.int32)
    clean = self.data["images"][index] if images is None else images
    pixels = np.stack([clean, self.data["images_aug"][index]], axis=1).astype(np.float32)
    return {
      "image": pixels.transpose(0, 1, 3, 4, 2),
      "tokens": np.stack([self.data["captions"][index], self.data["mlm"][index]], axis=1),
      "index": index,
      "image_index": index,
      "mask": np.ones(len(index), bool),
    }

  def step(self, index, images=None):
    batch = sharding.global_batch(self.mesh, self.batch(index, images), len(index))
    if self._compiled is None:
      config = self.config
      searches = {
        "mine_local": functools.partial(mining.mine_local, settings=config.local_association),
        "mine_global": functools.partial(
          mining.mine_global, settings=config.global_association, mesh=self.mesh,
          block_rows=config.bank.block_rows, same_image_rows=0,
        ),
      }  # fmt: skip
      self._compiled = compilation.compile_step(
        lambda state, batch: train_step.train_step(
          state, batch, encode=self.encode, optimizer=self._tx, config=self.config,
          mesh=self.mesh, masking=Masking.below(997), pixel_statistics=pixels.CLIP,
          select_trained=lambda params: params, num_patches=1, steps_per_epoch=3, **searches,
        ),
        self.mesh, self.state, batch,
      )  # fmt: skip
    self.state, report = self._compiled(self.state, batch)
    return jax.device_get(report)


def _selected(neighbours):
  return np.where(neighbours.valid, neighbours.rows, -1)


@pytest.mark.parametrize("mesh_shape, accumulation", WAYS, ids=str)
def test_nine_steps_equal_the_reference_trajectory(given_views, mesh_shape, accumulation):
  facts = description("p11_traj_B")
  tx = recipe.create_optimizer(
    num_epochs=facts["num_epoch_arg"], steps_per_epoch=3, base=facts["lr"]
  )
  reference = Reference("p11_traj_B", mesh_shape, tx, accumulation)
  data = reference.data
  for step in range(9):
    report = reference.step(data["perms"][step // 3][8 * (step % 3) :][:8])
    for column, name in enumerate(("itc", "local", "global", "consistency")):
      expected = data["losses_f64"][step][column]
      actual = report.metrics[f"loss_{name}"]
      # 3e-5: nine steps of float32 rounding; the reference's own float32 run reaches 1e-5.
      np.testing.assert_allclose(actual, np.nan_to_num(expected), rtol=3e-5, atol=3e-5)
    expected = data["sel"][step] if step >= 3 else np.full((8, 3), -1)
    np.testing.assert_array_equal(_selected(report.neighbours), expected)
  bank = jax.device_get(reference.state.bank)
  # On some processors, and with accumulation over 4 parts, 2 of 12,288 entries differ by 2.3e-5.
  np.testing.assert_allclose(bank.image[:24], data["mem_img_final"], rtol=1e-4, atol=3e-5)
  np.testing.assert_allclose(bank.text[:24], data["mem_txt_final"], rtol=1e-4, atol=3e-5)
  tensors = params_lib.write_tensors(jax.device_get(reference.state.params), tensor_names.OPENAI)
  for name, (norm, *_) in facts["param_checks_final_f64"].items():
    actual = np.linalg.norm(tensors[name.removeprefix("base_model.")])
    np.testing.assert_allclose(actual, norm, rtol=1e-6, err_msg=name)


def _gradient_reference(accumulation=1, **weights):
  """A reference whose parameters stand still and whose optimiser state is the last gradient."""
  tx = optax.chain(optax.trace(decay=0.0), optax.scale(0.0))
  return Reference("p11_e2e_B", (1, 1, 1), tx, accumulation, **weights)


def _gradients(reference):
  return params_lib.write_tensors(
    jax.device_get(reference.state.opt_state[0].trace), tensor_names.OPENAI
  )


def _assert_gradients(reference, key):
  gradients = _gradients(reference)
  for name, facts in description("p11_e2e_B")["grads"].items():
    norm, _, wave = facts[key]["f64"]
    gradient = gradients[name.removeprefix("base_model.")].astype(np.float64).ravel()
    np.testing.assert_allclose(np.linalg.norm(gradient), norm, rtol=2e-5, err_msg=name)
    # Cancellation leaves an error on the scale of the norm.
    actual = np.sum(gradient * np.cos(np.arange(gradient.size)))
    np.testing.assert_allclose(actual, wave, atol=3e-5 * norm, err_msg=name)


@pytest.mark.accelerator
@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=SLOWER)])
def test_whole_step_equals_the_reference_with_every_gradient(given_views, accumulation):
  reference, facts = _gradient_reference(accumulation), description("p11_e2e_B")
  perm = reference.data["epoch1_perm"]
  for number in range(3):
    report = reference.step(perm[8 * number :][:8])
    for name, theirs in LOSSES.items():
      expected = facts["loss_epoch1_f64"][number].get(theirs, 0.0)
      np.testing.assert_allclose(report.metrics[f"loss_{name}"], expected, rtol=1e-5, atol=1e-6)
    if number == 0:
      _assert_gradients(reference, "epoch1_batch0_total")
  bank = jax.device_get(reference.state.bank)
  np.testing.assert_allclose(
    bank.image[:24], reference.data["mem_img_after_epoch1"], rtol=1e-4, atol=2e-5
  )
  index, images = reference.data["epoch2_index"], reference.data["images_epoch2_batch"]
  report = reference.step(index, images)
  for name, theirs in LOSSES.items():
    assert_loss(report.metrics[f"loss_{name}"] / 10, facts["loss_epoch2_f64"][theirs] / 10)
  np.testing.assert_array_equal(_selected(report.neighbours), reference.data["sel2"])
  related = np.unpackbits(report.local_relations, axis=1, count=8).astype(bool)
  np.testing.assert_array_equal(related | np.eye(8, dtype=bool), reference.data["assoc2_itc1"])
  _assert_gradients(reference, "epoch2_total")
  bank = jax.device_get(reference.state.bank)
  np.testing.assert_allclose(
    bank.image[:24], reference.data["mem_img_after_epoch2"], rtol=1e-4, atol=2e-5
  )


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_weight_zero_leaves_the_gradient(given_views, name):
  """Each loss alone has the reference's gradient: weights switch losses, and nothing else."""
  weights = {other: float(other == name) for other in LOSSES}
  reference, facts = _gradient_reference(**weights), description("p11_e2e_B")
  for number in range(3):
    reference.step(reference.data["epoch1_perm"][8 * number :][:8])
  index, images = reference.data["epoch2_index"], reference.data["images_epoch2_batch"]
  if name == "consistency":
    assert reference.config.loss.weights["consistency"] == 1
  report = reference.step(index, images)
  assert report.metrics["loss"] == report.metrics[f"loss_{name}"]
  gradients = _gradients(reference)
  for parameter, grads in facts["grads"].items():
    norm = grads["epoch2_per_loss_norm_f64"][LOSSES[name]]
    actual = np.linalg.norm(gradients[parameter.removeprefix("base_model.")])
    np.testing.assert_allclose(actual, norm, rtol=3e-5, atol=1e-6, err_msg=parameter)


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=SLOWER), 4])
def test_start_epochs_hold_relations_back(given_views, accumulation):
  """The distorted view is left out before its epoch; with accumulation in both encodings."""
  reference = _gradient_reference(accumulation)
  reference.config.local_association.threshold = -2.0  # everything would be related
  reference.config.local_association.start_epoch = 2
  reference.config.global_association.start_epoch = 3
  perm = reference.data["epoch1_perm"]
  reports = [reference.step(perm[:8]) for _ in range(7)]
  related = [report.metrics["local_relations"] for report in reports]
  assert related == [0, 0, 0, 7, 7, 7, 7]
  mined = [report.metrics["global_relations"] > 0 for report in reports]
  assert mined == [False] * 6 + [True]
  assert [report.metrics["loss_global"] > 0 for report in reports] == mined


def _mine_first(bank, features, batch, settings, mesh):
  """Neighbours of the first pair; compiled in every call, since settings change between them."""
  library, strict = mining, {}
  if any(settings.strict_mining.values()):
    library, strict = strict_mining, {"strict": settings.strict_mining}
  pair = mining.FeaturePair(features[:1], features[:1])
  mine = lambda: library.mine_global(
    bank, pair, batch, settings=settings.global_association, mesh=mesh,
    block_rows=settings.bank.block_rows, same_image_rows=1, **strict,
  )  # fmt: skip
  return jax.jit(mine)()


def test_exclude_same_image_in_the_step(given_views):
  """Rows that hold the anchor's image are skipped by the image number stored with each row."""
  mesh = mesh_of(1, 1, 1)
  features = np.eye(4, dtype=np.float32)[[0, 0, 0, 1]] + np.float32([[0], [0.1], [0.2], [0.3]])
  bank = memory_bank.create(3072, 4)
  index, images = np.arange(4, dtype=np.int32), np.array([7, 7, 8, 9], np.int32)
  bank = compiled_bank.update(
    bank, index, images, features, features, np.ones(4, np.float32), mesh=mesh
  )
  settings = config.base()
  settings.global_association.threshold = 0.0
  batch = {"index": index[:1], "image_index": images[:1], "mask": np.ones(1, bool)}
  mine = lambda: _mine_first(bank, features, batch, settings, mesh)
  assert set(_selected(mine())[0]) == {1, 2, 3}
  settings.global_association.exclude_same_image = True
  assert set(_selected(mine())[0]) == {2, 3, -1}


def test_reciprocal_neighbours_ignore_their_own_captions():
  """Two images with two captions each: an image's other caption takes a slot from the anchor."""
  mesh = mesh_of(1, 1, 1)
  features = np.float32([[1, 0], [1, 0.05], [1, 0.2], [1, 0.21], [-1, 1]])
  bank = memory_bank.create(3072, 2)
  index, images = np.arange(5, dtype=np.int32), np.array([7, 7, 8, 8, 9], np.int32)
  bank = compiled_bank.update(
    bank, index, images, features, features, np.ones(5, np.float32), mesh=mesh
  )
  settings = config.base()
  settings.global_association.k, settings.strict_mining.reciprocal = 1, True
  batch = {"index": index[:1], "image_index": images[:1], "mask": np.ones(1, bool)}
  mine = lambda: _mine_first(bank, features, batch, settings, mesh)
  assert set(_selected(mine())[0]) == {1}  # the anchor's own image, which retrieves it
  settings.global_association.exclude_same_image = True
  assert set(_selected(mine())[0]) == {2}


def test_report_when_the_global_loss_is_off(given_views):
  reference = _gradient_reference(**{"global": 0.0})
  report = reference.step(reference.data["epoch1_perm"][:8])
  assert not report.neighbours.valid.any()
  expected = global_association.no_neighbours(8, 3)
  np.testing.assert_array_equal(report.neighbours.rows, expected.rows)
