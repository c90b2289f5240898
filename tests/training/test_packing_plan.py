"""The captions of a run are packed and the step's results do not change."""

import dataclasses

import jax
import numpy as np
import pytest

from dgia_jax.method import compilation, train_state
from dgia_jax.models import dual_encoder, families
from dgia_jax.models.caption_packing import Packing, Slot
from dgia_jax.training import packing_plan, setup, train
from tests.helpers import tiny_run


def setup_with_captions(num_words, workdir, **fields):
  """A setup whose training captions have these numbers of words, in turn."""
  splits = tiny_run.splits()
  pairs = splits["train"]
  words = " ".join(tiny_run.WORDS).split()
  captions = [
    " ".join(words[n % 7 :][: num_words[n % len(num_words)]]) for n in range(pairs.num_pairs)
  ]
  splits["train"] = dataclasses.replace(pairs, captions=captions)
  fields = {"tokenizer__context_length": 32} | fields
  return setup.create(tiny_run.config(**fields), workdir, splits)


def use_one_device(monkeypatch):
  devices = jax.devices()[:1]
  monkeypatch.setattr(jax, "devices", lambda: devices)


def encoded(run):
  return run.tokenizer.encode(run.train_pairs.captions)


def test_slots_fit_every_batch_of_the_run(tmp_path, monkeypatch):
  use_one_device(monkeypatch)
  run = setup_with_captions([1, 2, 3, 5], tmp_path)
  tokens = encoded(run)
  packing = packing_plan.choose_packing(run, tokens)
  limits = [slot.length for slot in packing.slots]
  assert len(limits) == 8 and limits == sorted(limits)
  batches = train.global_batches(run, tokens, 0)
  for batch in batches:
    lengths = np.argmax(batch["tokens"], axis=1) + 1
    assert np.all(np.sort(lengths) <= limits)
  batches.close()
  mean = np.mean(np.argmax(tokens, axis=1) + 1)
  computed = packing.num_rows * packing.row_length / 8
  assert packing_plan.describe(packing, tokens) == (
    f"captions have {mean:.1f} of 32 tokens on average; packed into rows of {packing.row_length},"
    f" {computed:.1f} are computed"
  )


def test_nothing_is_packed_where_nothing_is_saved(tmp_path, monkeypatch):
  use_one_device(monkeypatch)
  run = setup_with_captions([6], tmp_path, tokenizer__context_length=8)
  assert packing_plan.choose_packing(run, encoded(run)) is None
  run = setup_with_captions([1, 9], tmp_path / "2", model__pack_captions=False)
  assert packing_plan.choose_packing(run, encoded(run)) is None


def test_no_caption_is_cut_for_a_tower_that_attends_to_padding(tmp_path, monkeypatch):
  use_one_device(monkeypatch)
  run = setup_with_captions([1, 2, 3, 5], tmp_path)
  assert packing_plan.choose_packing(run, encoded(run))
  siglip = dataclasses.replace(tiny_run.SIZE, family=families.SIGLIP)
  monkeypatch.setitem(dual_encoder.SIZES, "test_size", siglip)
  assert packing_plan.choose_packing(run, encoded(run)) is None


@pytest.mark.parametrize(
  "fields",
  [
    pytest.param({}, id="plain", marks=pytest.mark.integration),
    pytest.param({"gradient_accumulation": 2}, id="accumulation", marks=pytest.mark.integration),
    pytest.param(
      {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2, "batch_size": 32},
      id="mesh", marks=pytest.mark.integration,
    ),
    pytest.param(
      {"local_association__start_epoch": 2}, id="views_apart", marks=pytest.mark.integration
    ),
  ],
)  # fmt: skip
def test_a_packed_step_equals_one_that_is_not(tmp_path, monkeypatch, fields):
  if "mesh__data" not in fields:
    use_one_device(monkeypatch)
  # With a small epsilon, Adam would make full steps out of gradients that are only rounding.
  run = setup_with_captions([1, 2, 3, 7], tmp_path, optimizer__epsilon=0.1, **fields)
  tokens = encoded(run)
  packing = packing_plan.choose_packing(run, tokens)
  assert packing is not None
  batches = train.global_batches(run, tokens, 0)
  batch = next(batches)
  batches.close()
  outcomes = []
  for chosen in (packing, None):
    state = train_state.create(run.mesh, setup.state_initializer(run))
    step = compilation.compile_step(setup.create_step(run, chosen), run.mesh, state, batch)
    state, output = step(state, batch)
    outcomes.append(jax.device_get((state.params, state.bank, output.metrics)))
  for actual, expected in zip(*map(jax.tree.leaves, outcomes), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.integration
def test_a_caption_that_is_longer_than_announced_stops_the_run(tmp_path, monkeypatch):
  use_one_device(monkeypatch)
  run = setup_with_captions([1, 2, 3, 7], tmp_path)
  batches = train.global_batches(run, encoded(run), 0)
  batch = next(batches)
  batches.close()
  state = train_state.create(run.mesh, setup.state_initializer(run))
  too_short = Packing(tuple(Slot(row, 0, 4) for row in range(8)), num_rows=8, row_length=8)
  step = compilation.compile_step(setup.create_step(run, too_short), run.mesh, state, batch)
  assert np.isnan(step(state, batch)[1].metrics["loss"])
