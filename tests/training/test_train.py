"""Whole runs: on any mesh, with shuffled identities, resumed, stopped, finished, profiled."""

import dataclasses
import io
import json
import logging
import shutil
import threading
import time

import jax
import numpy as np
import pytest

from dgia_jax import sharding
from dgia_jax.data import tokenizer
from dgia_jax.errors import UserError
from dgia_jax.method import compilation, train_step, views
from dgia_jax.reporting.console import Console
from dgia_jax.training import checkpoint, checkpoint_record, setup, step_profiler, train
from tests.helpers import tiny_run
from tests.helpers.stopped_run import stopped_after


def run(workdir, splits=None, out=None, **fields):
  """Trains; returns the content of results.json and the lines of metrics.jsonl.

  Args:
    workdir: the run's working directory.
    splits: pairs other than `tiny_run.splits`.
    out: a StringIO for the console's output.
    **fields: as in `tiny_run.config`.
  """
  console = Console(file=out or io.StringIO())
  results = train.train(tiny_run.config(**fields), workdir, console, splits or tiny_run.splits())
  return results, tiny_run.metrics(workdir)


def tokens_of(parts):
  return parts.tokenizer.encode(parts.train_pairs.captions)


def restored(workdir, **fields):
  """The last checkpoint of a finished run, on one device."""
  parts = setup.create(tiny_run.config(**fields), workdir, tiny_run.splits())
  checkpoints = checkpoint.Checkpoints(workdir)
  state, _ = checkpoints.restore(
    checkpoints.latest(), parts.mesh, jax.eval_shape(setup.state_initializer(parts))
  )
  checkpoints.close()
  return jax.device_get(state)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
  """Workdir, results and log of the run that all others are compared with."""
  workdir = tmp_path_factory.mktemp("one_device")
  return workdir, *run(workdir)


@pytest.fixture(scope="module", autouse=True)
def one_device_by_default():
  """Meshes of one device exist although the process has eight."""
  with pytest.MonkeyPatch.context() as patch:
    original = sharding.create_mesh
    patch.setattr(
      sharding,
      "create_mesh",
      lambda data, fsdp, tensor, devices=None: original(
        data, fsdp, tensor, devices=jax.devices()[: data * fsdp * tensor]
      ),
    )
    yield


def losses(lines):
  return np.array([line["loss"] for line in lines if line["split"] == "train"])


@pytest.mark.integration
@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 4, 1), (2, 2, 2)], ids=str)
def test_any_mesh_gives_the_same_run(one_device, tmp_path, mesh):
  workdir, _, lines = one_device
  axes = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), mesh, strict=True))
  _, mesh_lines = run(tmp_path, **axes)
  np.testing.assert_allclose(losses(mesh_lines), losses(lines), rtol=2e-4)
  for ours, theirs in zip(mesh_lines, lines, strict=True):
    for name in ("local_relations", "global_relations", "local_precision", "global_precision"):
      assert ours.get(name) == pytest.approx(theirs.get(name), abs=1e-4), (name, ours["step"])
  one, many = restored(workdir), restored(tmp_path)
  # Adam divides by the root of the second moment, so rounding near zero gradients is amplified.
  np.testing.assert_allclose(many.bank.image, one.bank.image, atol=5e-3)
  np.testing.assert_allclose(many.bank.text, one.bank.text, atol=5e-3)
  np.testing.assert_array_equal(many.bank.group, one.bank.group)


def _steps(mesh, count=6, splits=None, **fields):
  """The outputs of the first steps and the last state, on a mesh."""
  config = tiny_run.config(**fields)
  config.mesh.update(dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)))
  parts = setup.create(config, "/nonexistent", splits or tiny_run.splits())
  state = train.train_state.create(parts.mesh, setup.state_initializer(parts))
  batches = train.global_batches(parts, tokens_of(parts), 0)
  outputs, compiled = [], None
  for _, batch in zip(range(count), batches, strict=False):
    compiled = compiled or compilation.compile_step(
      setup.create_step(parts), parts.mesh, state, batch
    )
    state, output = compiled(state, batch)
    outputs.append(jax.device_get(output))
  batches.close()
  return outputs, jax.device_get(state)


@pytest.fixture
def no_tokenizer_folder(monkeypatch):
  """The vocabulary is not stored."""
  monkeypatch.setattr(tokenizer.Tokenizer, "save", lambda self, folder: None)


@pytest.mark.integration
@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_relations_are_the_same_row_by_row(no_tokenizer_folder, mesh):
  # Untrained features are similar, so a threshold inside their range relates some pairs.
  fields = {"local_association__threshold": 0.93, "global_association__threshold": 0.9}
  one, state = _steps((1, 1, 1), 7, **fields)
  many, mesh_state = _steps(mesh, 7, **fields)
  mined = 0
  for ours, theirs in zip(many, one, strict=True):
    np.testing.assert_array_equal(ours.index, theirs.index)
    np.testing.assert_array_equal(ours.local_relations, theirs.local_relations)
    np.testing.assert_array_equal(ours.neighbours.valid, theirs.neighbours.valid)
    valid = theirs.neighbours.valid
    np.testing.assert_array_equal(ours.neighbours.rows[valid], theirs.neighbours.rows[valid])
    mined += valid.sum()
  assert mined > 0 and (one[4].index == -1).sum() == 4  # the padded partial batch is among them
  np.testing.assert_allclose(mesh_state.bank.image, state.bank.image, rtol=1e-3, atol=1e-4)


@pytest.mark.integration
def test_identities_never_reach_training(one_device, tmp_path):
  _, results, lines = one_device
  splits = tiny_run.splits()
  pairs = splits["train"]
  shuffled = np.random.default_rng(5).permutation(pairs.person_of_image_M)
  assert (shuffled != pairs.person_of_image_M).any()
  splits["train"] = dataclasses.replace(pairs, person_of_image_M=shuffled)
  other, other_lines = run(tmp_path, splits)
  assert other["digest"] == results["digest"]
  precision = lambda lines: [line.get("local_precision") for line in lines]
  assert precision(other_lines) != precision(lines)


def test_a_training_batch_has_no_identity(no_tokenizer_folder):
  parts = setup.create(tiny_run.config(), "/nonexistent", tiny_run.splits())
  batches = train.global_batches(parts, tokens_of(parts), 0)
  assert set(next(batches)) == {"image", "tokens", "index", "image_index", "mask"}
  batches.close()


@pytest.mark.integration
def test_batches_are_prepared_in_a_thread_and_the_wait_for_them_is_logged(one_device, tmp_path):
  threads = set()

  def slow(batch, step):
    threads.add(threading.current_thread())
    time.sleep(0.3)
    return batch

  console = Console(file=io.StringIO())
  train.train(tiny_run.config(num_epochs=1), tmp_path, console, tiny_run.splits(), slow)
  assert threading.main_thread() not in threads and len(threads) == 1
  waits = lambda lines: [line["input_wait"] for line in lines if line.get("input_wait") is not None]
  assert max(waits(tiny_run.metrics(tmp_path))) > 0.2
  assert waits(one_device[2]) and all(0 <= wait <= 1 for wait in waits(one_device[2]))


@pytest.mark.integration
@pytest.mark.parametrize("steps", [7, 10], ids=["within an epoch", "between epochs"])
def test_a_resumed_run_equals_an_uninterrupted_one(one_device, tmp_path, steps):
  with stopped_after(steps):
    run(tmp_path, checkpoint__every_steps=1)
  assert checkpoint.steps_saved(tmp_path)[-1] == steps
  resumed, _ = run(tmp_path, checkpoint__every_steps=1)
  assert resumed["digest"] == one_device[1]["digest"]


@pytest.mark.integration
def test_scores_before_training_are_epoch_0_and_change_nothing(one_device, tmp_path):
  """They are those of an evaluation without training, and no checkpoint is chosen by them."""
  source, without, _ = one_device
  fields = {"pretrained": str(source), "eval__before_training": True, "num_epochs": 1}
  out = io.StringIO()
  with stopped_after(3):
    run(tmp_path / "run", out=out, checkpoint__every_steps=2, **fields)
  assert out.getvalue().count("val, epoch 0 (before training)") == 1
  results, lines = run(tmp_path / "run", out=out, checkpoint__every_steps=2, **fields)
  assert out.getvalue().count("val, epoch 0 (before training)") == 1  # not again when resumed
  zero = [(line["split"], line["step"]) for line in lines if line["epoch"] == 0]
  assert zero == [("val", 0), ("test", 0)]
  before = results["before_training"]
  assert (before["epoch"], before["step"]) == (0, 0)
  for direction in ("t2i", "i2t"):  # the run starts from the best checkpoint of the other
    assert before[direction] == without["best"][direction]
  assert results["best"]["epoch"] == 1
  assert "results on test, epoch 0 (before training)" in out.getvalue()
  plain, _ = run(tmp_path / "plain", **fields | {"eval__before_training": False})
  assert plain["digest"] == results["digest"] and "before_training" not in plain


@pytest.mark.integration
def test_left_out_patches_are_the_same_on_any_mesh_and_in_parts(no_tokenizer_folder):
  fields = {"augment__patch_drop_ratio": 0.5}
  one, _ = _steps((1, 1, 1), 3, **fields)
  for mesh, parts in (((2, 2, 2), 1), ((1, 1, 1), 4)):
    other, _ = _steps(mesh, 3, gradient_accumulation=parts, **fields)
    for ours, theirs in zip(other, one, strict=True):
      for name, value in theirs.metrics.items():
        np.testing.assert_allclose(ours.metrics[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
  whole, _ = _steps((1, 1, 1), 1)
  first, whole = one[0].metrics, whole[0].metrics
  assert first["loss_itc"] == pytest.approx(whole["loss_itc"], rel=1e-4)
  assert abs(first["loss_consistency"] - whole["loss_consistency"]) > 1e-3


STRICT = {
  "strict_mining__reciprocal": True, "strict_mining__require_text_match": True,
  "strict_mining__global_threshold_num_stds": 0.5, "strict_mining__local_threshold_num_stds": 0.5,
  "global_association__exclude_same_image": True,
}  # fmt: skip


@pytest.mark.integration
def test_strict_mining_is_the_same_on_any_mesh(tmp_path):
  _, lines = run(tmp_path / "one", **STRICT)
  _, mesh_lines = run(tmp_path / "mesh", **STRICT, mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
  np.testing.assert_allclose(losses(mesh_lines), losses(lines), rtol=1e-3)
  mined = [line["global_relations"] for line in lines if line["split"] == "train"]
  assert max(mined) > 0


@pytest.mark.integration
def test_the_step_compiles_once(tmp_path, caplog):
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    run(tmp_path, num_epochs=2)
  compiled = [r.message for r in caplog.records if r.message.startswith("Finished XLA compilation")]
  steps = [message for message in compiled if "train_step" in message]
  assert len(steps) == 1, compiled


@pytest.mark.integration
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
  config = tiny_run.config(optimizer__learning_rate=1e30, optimizer__warmup_epochs=0)
  with pytest.raises(UserError, match=r"(loss|gradient_norm) is (nan|-?inf) at step \d+"):
    train.train(config, tmp_path, Console(file=io.StringIO()), tiny_run.splits())
  assert all(np.isfinite(line["loss"]) for line in tiny_run.metrics(tmp_path) if "loss" in line)
  for step in checkpoint.steps_saved(tmp_path):
    assert step < 15


def test_the_files_hold_what_the_contract_lists(one_device):
  workdir, results, lines = one_device
  assert results == json.loads((workdir / "results.json").read_text())
  scores = {"R1", "R5", "R10", "mAP", "mINP"}
  for part in (results["last"], results["best"]):
    assert set(part["t2i"]) == set(part["i2t"]) == scores
  assert results["best"]["selected_on"] == "val" and results["best"]["epoch"] in (1, 2, 3)
  assert len(results["digest"]) == 64
  assert {"queries", "gallery", "seed", "wall_time_seconds", "device"} <= set(results)
  train_lines = [line for line in lines if line["split"] == "train"]
  named = {"step", "epoch", "loss", "loss_itc", "loss_local", "loss_global", "loss_consistency"}
  named |= {"pairs_per_second", "local_precision", "global_precision"}
  named |= {"time", "step_seconds", "learning_rate"}
  assert all(named <= set(line) for line in train_lines)
  assert [line["epoch"] for line in lines if line["split"] == "val"] == [1, 2, 3]
  assert json.loads((workdir / "config.json").read_text())["batch_size"] == 8
  assert list(workdir.glob("events*"))


def test_the_logged_learning_rate_is_that_of_the_step(one_device):
  """One warm-up epoch of 5 steps from a tenth of the rate, then cosine; set every step."""
  _, _, lines = one_device
  rates = {line["step"]: line["learning_rate"] for line in lines if line["split"] == "train"}
  assert rates[2] == pytest.approx(2e-3 * (0.1 + 0.9 / 5), rel=1e-5)
  assert rates[5] == pytest.approx(2e-3 * (0.1 + 0.9 * 4 / 5), rel=1e-5)
  assert rates[12] == pytest.approx(1e-3 * (1 + np.cos(np.pi * 6 / 10)), rel=1e-5)


def test_a_finished_run_shows_its_results_again(one_device):
  workdir, results, lines = one_device
  out = io.StringIO()
  again, lines_again = run(workdir, out=out)
  assert again == results and lines_again == lines
  assert "finished already: all 15 steps are done" in out.getvalue()
  assert "results on test" in out.getvalue() and "compil" not in out.getvalue()


def test_only_results_of_the_end_are_those_of_a_finished_run(one_device, tmp_path):
  """An evaluation in mid-run or of a checkpoint that training has not evaluated leaves others."""
  workdir, results, _ = one_device
  for folder in (f"checkpoints/{step}" for step in checkpoint.steps_saved(workdir)):
    shutil.copytree(workdir / folder, tmp_path / folder)
  parts = setup.create(tiny_run.config(), tmp_path, tiny_run.splits())
  checkpoints = checkpoint.Checkpoints(tmp_path)

  def stored(content):
    (tmp_path / "results.json").write_text(json.dumps(content))
    return train._stored_results(parts, checkpoints)

  assert stored(results) == results
  assert stored(results | {"last": results["last"] | {"step": 5}}) is None
  assert stored({key: value for key, value in results.items() if key != "last_by_split"}) is None
  assert stored([]) is stored({}) is None
  newest = tmp_path / checkpoint.FOLDER / "15"
  checkpoint_record.amend(newest, checkpoints.record(15) | {"evaluation_pending": True}, 1.0)
  assert stored(results) is None
  shutil.rmtree(newest / "record")
  assert stored(results) is None
  shutil.rmtree(newest)
  assert stored(results) is None


def test_a_finished_run_without_results_is_evaluated(one_device):
  workdir, results, _ = one_device
  (workdir / "results.json").write_text('{"digest": "5')
  out = io.StringIO()
  again, _ = run(workdir, out=out)
  assert "finished already: all 15 steps" in out.getvalue() and "resuming" not in out.getvalue()
  for name in ("digest", "last", "best", "chance_R1"):
    assert again[name] == results[name]


@pytest.mark.integration
def test_messages_come_before_what_they_announce(tmp_path):
  out = io.StringIO()
  fields = {"local_association__start_epoch": 3, "loss__weights__consistency": 0.5}
  run(tmp_path, out=out, **fields)
  text = out.getvalue()
  compiling = text.index("compiling the training step: about a minute on the first start; later")
  assert compiling < text.index("training step compiled in")
  assert text.index("epoch 1/3  step 5") < text.index(
    "epoch 2: the global loss starts, so the total"
  )
  assert text.index("epoch 2/3  step 10") < text.index("epoch 3: the local and consistency losses")


def test_results_state_the_chance_level(one_device):
  """The gallery of 12 test images shows each of 6 persons twice."""
  _, results, _ = one_device
  assert results["chance_R1"]["t2i"] == pytest.approx(100 * 2 / 12)
  assert results["chance_R1"]["i2t"] == pytest.approx(100 * 3 / 18)


@pytest.mark.integration
def test_the_contact_sheet_is_also_in_tensorboard(tmp_path):
  run(tmp_path, num_epochs=1, eval__contact_sheet=True)
  assert (tmp_path / "contact_sheet.png").exists()
  (events,) = tmp_path.glob("events*")
  assert b"test/contact_sheet" in events.read_bytes()


@pytest.mark.integration
def test_a_profile_covers_the_chosen_steps(tmp_path, monkeypatch):
  calls = []
  monkeypatch.setattr(step_profiler.profiler, "start", calls.append)
  monkeypatch.setattr(step_profiler.profiler, "stop", lambda: calls.append("stop"))
  out = io.StringIO()
  run(tmp_path, out=out, num_epochs=1, profile__steps=2, profile__start_step=3)
  assert calls == [str(tmp_path / "profile"), "stop"]
  assert f"profile written to {tmp_path / 'profile'}" in out.getvalue()


def test_global_loss_starts_with_the_second_epoch(one_device):
  _, _, lines = one_device
  for line in lines:
    if line["split"] == "train":
      assert (line["loss_global"] > 0) == (line["epoch"] >= 2), line


@pytest.mark.integration
def test_padded_rows_change_nothing(no_tokenizer_folder):
  """A batch of 8 with 4 padded rows of any content gives the results of the batch of 4."""
  fields = {"loss__weights__consistency": 0.0, "local_association__threshold": 0.9}
  wide = setup.create(tiny_run.config(**fields), "/nonexistent", tiny_run.splits())
  narrow = setup.create(tiny_run.config(batch_size=4, **fields), "/nonexistent", tiny_run.splits())
  batches = train.global_batches(wide, tokens_of(wide), 4)
  batch = jax.tree.map(np.array, jax.device_get(next(batches)))
  batches.close()
  assert batch["mask"].sum() == 4
  junk = np.random.default_rng(0)
  batch["image"][4:] = junk.integers(0, 255, batch["image"][4:].shape)
  batch["tokens"][4:] = batch["tokens"][:4]
  states = []
  for parts, rows in ((wide, 8), (narrow, 4)):
    state = train.train_state.create(parts.mesh, setup.state_initializer(parts))
    step = jax.jit(setup.create_step(parts))
    for _ in range(2):
      state, output = step(state, {name: value[:rows] for name, value in batch.items()})
    states.append((state, output))
  (state_8, output_8), (state_4, output_4) = states
  for name, value in output_4.metrics.items():
    np.testing.assert_allclose(output_8.metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
  np.testing.assert_allclose(state_8.bank.image, state_4.bank.image, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(state_8.bank.group, state_4.bank.group)
  written = np.flatnonzero(np.asarray(state_8.bank.group) >= 0)
  np.testing.assert_array_equal(written, np.sort(batch["index"][:4]))


@pytest.mark.integration
def test_fewer_pairs_than_a_batch_has_rows_are_trained_on(tmp_path):
  """36 pairs in a batch of 48, whose padded rows are packed like captions."""
  out = io.StringIO()
  _, lines = run(tmp_path, out=out, batch_size=48, num_epochs=2)
  assert "packed into rows of" in out.getvalue()
  assert len(losses(lines)) == 2 and np.isfinite(losses(lines)).all()


@pytest.mark.integration
def test_a_view_that_is_not_needed_yet_is_not_missed(no_tokenizer_folder, monkeypatch):
  """Skipping the distorted view before its losses start gives the steps that encoding it gives."""
  fields = {"local_association__start_epoch": 2}
  skipped, skipped_state = _steps((1, 1, 1), 8, **fields)
  together = views.encode_views
  monkeypatch.setattr(train_step, "encode_views", lambda *args: together(*args[:4]))
  encoded, encoded_state = _steps((1, 1, 1), 8, **fields)
  for ours, theirs in zip(skipped, encoded, strict=True):
    for name, value in theirs.metrics.items():
      np.testing.assert_allclose(ours.metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
  assert skipped[4].metrics["loss_consistency"] == 0 < skipped[5].metrics["loss_consistency"]
  np.testing.assert_allclose(skipped_state.bank.image, encoded_state.bank.image, atol=1e-3)
