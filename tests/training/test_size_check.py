import dataclasses
import types

import jax
import psutil
import pytest

from dgia_jax.dry_run import compile_report
from dgia_jax.errors import UserError
from dgia_jax.method import compilation
from dgia_jax.reporting.console import Console
from dgia_jax.training import setup, size_check, train
from tests.helpers import tiny_run
from tests.helpers.meshes import mesh_of

GIB = 2**30


@pytest.fixture
def parts(tmp_path):
  """Returns a function from config fields to a TrainingSetup on eight devices."""
  return lambda **fields: setup.create(
    tiny_run.config(mesh__data=8, **fields), tmp_path, tiny_run.splits()
  )


@pytest.fixture(autouse=True)
def memory(monkeypatch):
  """The machine has 16 GiB available: 2 GiB for each of eight devices."""
  memory = type("Memory", (), {"available": 16 * GIB})
  monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def needed(setup, word):
  """The bytes of the one need whose name contains a word."""
  (need,) = (need for need in size_check.estimate(setup) if word in need.name)
  return need.num_bytes


def test_a_run_that_fits_is_accepted(parts):
  assert size_check.available_bytes(parts().mesh.devices.flat) == 2 * GIB
  size_check.check(parts())


@pytest.mark.parametrize(
  "fields, words",
  [
    ({"batch_size": 2**16}, ["262,144 x 262,144 similarities", "lower config.batch_size"]),
    ({"global_association__k": 2999, "batch_size": 256}, ["config.global_association.k"]),
    (
      {"model__name": "vit_l_14", "dataset__image_size": (14, 14)},
      ["parameters, gradients and optimiser state", "config.model.name"],
    ),
    (
      {"dataset__image_size": (2**13, 2**13), "batch_size": 8, "model__remat": False},
      ["the activations of the encoders", "config.gradient_accumulation"],
    ),
  ],
)
def test_what_cannot_fit_is_refused_in_one_line(parts, fields, words):
  with pytest.raises(
    UserError, match="training needs at least .* GiB on each device, and 2.0 GiB"
  ) as error:
    size_check.check(parts(**fields))
  assert "\n" not in str(error.value)
  for word in words:
    assert word in str(error.value)


def test_nothing_is_allocated_or_claimed_before_the_refusal(tmp_path):
  config = tiny_run.config(mesh__data=8, batch_size=2**16)
  with pytest.raises(UserError, match="training needs at least"):
    train.train(config, tmp_path, Console(active=False), tiny_run.splits())
  assert not (tmp_path / "config.json").exists()


def test_the_estimate_follows_the_mesh_and_the_settings(parts):
  split = parts(batch_size=64)
  alone = dataclasses.replace(split, mesh=mesh_of(1, 1, 1))
  assert needed(alone, "bank") == 8 * needed(split, "bank")
  assert needed(alone, "images") == 8 * needed(split, "images") == 4 * 3 * 2 * 64 * 16 * 16
  half_precision = parts(batch_size=64, model__dtype="bfloat16")
  assert 2 * needed(half_precision, "images") == needed(split, "images")
  assert needed(split, "similarities") == 4 * 256**2 / 8
  batch_only = parts(batch_size=64, global_association__loss_over="batch")
  assert needed(batch_only, "similarities") == 4 * 64 * 256 / 8
  without = parts(batch_size=64, loss__weights__global=0.0)
  assert needed(without, "similarities") == 4 * 64 * 64 / 8
  alone = {"batch_size": 64, "model__pack_captions": False}
  stored = [needed(parts(model__remat=remat, **alone), "activations") for remat in (False, True)]
  assert stored[0] == (6 + 3) / 2 * stored[1]  # of two blocks the last stores half
  # Two views of 5 image tokens and 8 text tokens, two blocks of width 32, float32.
  token = 64 * 2 * 32 * 4 / 8
  assert stored[1] == 2 * (5 + 8) * token
  # Of the distorted image, 2 of 4 patches are read. Packed captions may have any length.
  half = parts(augment__patch_drop_ratio=0.5, **alone)
  assert needed(half, "activations") == (5 + 3 + 2 * 8) * token
  assert needed(parts(batch_size=64), "activations") == 2 * 5 * token


@pytest.mark.integration
def test_the_estimate_is_below_what_the_compiler_reports(parts):
  """A lower bound must never refuse a run that fits."""
  run = parts(batch_size=64)
  state = jax.eval_shape(setup.state_initializer(run))
  batch = compile_report.abstract_batch(run.config)
  compiled = compilation.compile_step(setup.create_step(run), run.mesh, state, batch)
  sizes = compiled.memory_analysis()
  used = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
  assert sum(need.num_bytes for need in size_check.estimate(run)) < used


def test_an_accelerator_reports_its_own_memory():
  stats = {"bytes_limit": 80 * GIB, "bytes_in_use": 5 * GIB}
  gpu = types.SimpleNamespace(process_index=0, platform="gpu", memory_stats=lambda: stats)
  assert size_check.available_bytes([gpu, gpu]) == 75 * GIB
  silent = types.SimpleNamespace(process_index=0, platform="new", memory_stats=lambda: None)
  assert size_check.available_bytes([silent]) is None
  other_process = types.SimpleNamespace(process_index=1)
  assert size_check.available_bytes([other_process]) is None


def test_more_neighbours_than_bank_rows_are_refused(parts):
  with pytest.raises(UserError, match="k=5000: the memory bank has only 3,072 rows; lower k"):
    size_check.check(parts(global_association__k=5000))


def test_settings_beyond_the_dataset_are_explained(parts):
  assert size_check.notices(parts()) == []
  batch, k = size_check.notices(parts(batch_size=64, global_association__k=40))
  assert "batch_size=64 exceeds the 36 training pairs" in batch and "28 padded rows" in batch
  assert "k=40 exceeds the 35 other training pairs" in k
