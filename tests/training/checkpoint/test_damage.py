"""A damaged checkpoint is never used."""

import gc
import json
import shutil
import weakref

import numpy as np
import pytest

from dgia_jax import distributed
from dgia_jax.errors import UserError
from dgia_jax.training import checkpoint, checkpoint_arrays, checkpoint_record
from tests.helpers.checkpoints import (
  abstract_state,
  assert_equal,
  data_file,
  restore_newest,
  save,
  state_on,
)
from tests.helpers.meshes import mesh_of


def flip_one_bit(workdir):
  file = data_file(workdir, 4)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 16
  file.write_bytes(content)


def put_other_arrays_under_the_newest_record(workdir):
  folder = workdir / checkpoint.FOLDER
  shutil.rmtree(folder / "4" / "state")
  shutil.copytree(folder / "3" / "state", folder / "4" / "state")


def put_another_step_under_the_newest_name(workdir):
  folder = workdir / checkpoint.FOLDER
  shutil.rmtree(folder / "4")
  shutil.copytree(folder / "3", folder / "4")


def link_the_newest_name_to_another_step(workdir):
  folder = workdir / checkpoint.FOLDER
  shutil.rmtree(folder / "4")
  (folder / "4").symlink_to("3")


def change_the_score(workdir):
  file = workdir / checkpoint.FOLDER / "4" / "record" / "metadata"
  file.write_text(json.dumps(json.loads(file.read_text()) | {"score": 99.0}))


def remove_everything_in_it(workdir):
  shutil.rmtree(workdir / checkpoint.FOLDER / "4")
  (workdir / checkpoint.FOLDER / "4").mkdir()


@pytest.mark.parametrize(
  "damage",
  [
    flip_one_bit,
    put_other_arrays_under_the_newest_record,
    put_another_step_under_the_newest_name,
    link_the_newest_name_to_another_step,
    change_the_score,
    remove_everything_in_it,
    lambda workdir: data_file(workdir, 4).write_bytes(b""),
    lambda workdir: data_file(workdir, 4).unlink(),
    lambda workdir: data_file(workdir, 4).write_bytes(data_file(workdir, 4).read_bytes()[:999]),
    lambda workdir: shutil.rmtree(workdir / checkpoint.FOLDER / "4" / "record"),
  ],
)
def test_a_damaged_newest_checkpoint_is_moved_away_and_the_one_before_is_used(
  workdir, two_steps, damage, capfd
):
  damage(workdir)
  step, state, record, messages = restore_newest(workdir)
  assert (step, record["data_position"]) == (3, 3)
  assert_equal(state, two_steps[1][3])
  assert len(messages) == 1 and "\n" not in messages[0]
  assert "checkpoints/4 is damaged" in messages[0] and "continuing from step 3" in messages[0]
  assert checkpoint.steps_saved(workdir) == [3]
  assert [entry.name for entry in (workdir / checkpoint.DAMAGED_FOLDER).iterdir()] == ["4"]
  assert capfd.readouterr().err == ""
  assert restore_newest(workdir)[3] == []


def test_a_second_damaged_checkpoint_of_the_same_step_is_kept_as_well(workdir):
  for _ in range(2):
    flip_one_bit(workdir)
    restore_newest(workdir)
    save(workdir, 4)
  names = {entry.name for entry in (workdir / checkpoint.DAMAGED_FOLDER).iterdir()}
  assert names == {"4", "4-2"}


def test_without_an_intact_checkpoint_nothing_is_moved(workdir):
  for step in (3, 4):
    data_file(workdir, step).unlink()
  with pytest.raises(UserError, match="checkpoints/4 is damaged .* no other checkpoint .* intact"):
    restore_newest(workdir)
  assert checkpoint.steps_saved(workdir) == [3, 4]


def test_a_reader_moves_nothing(workdir, two_steps):
  flip_one_bit(workdir)
  step, state, _, messages = restore_newest(workdir, read_only=True)
  assert step == 3 and len(messages) == 1
  assert_equal(state, two_steps[1][3])
  assert checkpoint.steps_saved(workdir) == [3, 4]


@pytest.mark.parametrize("damaged_here", [True, False])
def test_processes_agree_on_a_difference_that_one_of_them_reads(workdir, monkeypatch, damaged_here):
  if damaged_here:
    put_other_arrays_under_the_newest_record(workdir)
  verdicts = []

  def first_that(condition):
    verdicts.append(condition)
    return 1 if len(verdicts) == 2 else None  # the second is that on the checksums

  monkeypatch.setattr(distributed, "first_that", first_that)
  message = "arrays differ from the saved" if damaged_here else "process 1 cannot read it"
  with pytest.raises(checkpoint_record.DamagedCheckpointError, match=message):
    checkpoint.Checkpoints(workdir).restore(4, mesh_of(1, 1, 1), abstract_state())
  assert verdicts == [False, damaged_here]


def test_the_arrays_of_a_damaged_checkpoint_leave_the_memory(workdir, monkeypatch):
  """At once, because there may be no room for two states until the garbage collector runs."""
  states, read_onto = [], checkpoint_arrays._read_onto

  def noted(*arguments):
    assert not any(bank() is not None for bank in states)  # of the damaged one
    state = read_onto(*arguments)
    states.append(weakref.ref(state.bank))
    if len(states) == 1:
      raise checkpoint_record.damaged(workdir, "by the test")
    return state

  monkeypatch.setattr(checkpoint_arrays, "_read_onto", noted)
  gc.disable()
  try:
    assert restore_newest(workdir)[0] == 3
  finally:
    gc.enable()
  assert len(states) == 2


def test_verification_can_be_switched_off(workdir):
  put_other_arrays_under_the_newest_record(workdir)
  assert restore_newest(workdir, verify=False)[0] == 4


def test_parameters_are_verified_too(tmp_path, capsys):
  states = save(tmp_path, 3, 4, scores={3: 1.0, 4: 2.0})
  step, params, _ = checkpoint.restore_params(tmp_path)
  assert step == 4
  assert_equal(params, states[4].params)
  flip_one_bit(tmp_path)
  put_other_arrays_under_the_newest_record(tmp_path)
  with pytest.raises(UserError, match="checkpoints/4 is damaged .* params/mlp/up/kernel"):
    checkpoint.restore_params(tmp_path, "best")
  step, params, _ = checkpoint.restore_params(tmp_path, "last")
  assert step == 3 and "checkpoints/4 is damaged" in capsys.readouterr().err
  assert_equal(params, states[3].params)


def test_the_digest_sees_every_bit_but_not_the_padding():
  state = state_on(mesh_of(1, 1, 1))
  digest = checkpoint.digest(state, 20)
  changed = state.replace(bank=state.bank.replace(text=state.bank.text.at[19, 0].add(1e-6)))
  padding = state.replace(bank=state.bank.replace(text=state.bank.text.at[20, 0].add(1.0)))
  assert checkpoint.digest(changed, 20) != digest
  assert checkpoint.digest(padding, 20) == digest


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(3))
def test_random_damage_never_changes_a_restored_value(two_steps, tmp_path, seed, capfd):
  source, states = two_steps
  rng = np.random.default_rng(seed)
  names = sorted(
    file.relative_to(source)
    for file in (source / checkpoint.FOLDER / "4").rglob("*")
    if file.is_file()
  )
  sizes = np.array([(source / name).stat().st_size for name in names], float)
  fallbacks = 0
  for number in range(40):
    workdir = tmp_path / str(number)
    shutil.copytree(source, workdir)
    chances = sizes / sizes.sum() if number % 2 else None  # every file, and every byte, has a turn
    file = workdir / rng.choice(names, p=chances)
    damage(file, workdir / rng.choice(names), rng)
    step, state, record, messages = restore_newest(workdir)
    assert step == (3 if messages else 4), (file, messages)
    assert len(messages) <= 1
    assert record["data_position"] == step
    assert_equal(state, states[step])
    fallbacks += step == 3
    shutil.rmtree(workdir)
  assert 5 < fallbacks < 40
  assert capfd.readouterr().err == ""


def damage(file, other, rng):
  """Flips a bit of a file, cuts it, empties it, deletes it or replaces it by another."""
  content = bytearray(file.read_bytes())
  kind = rng.choice(["flip", "flip", "flip", "cut", "empty", "delete", "swap"])
  if kind == "flip" and content:
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
  elif kind == "cut":
    content = content[: rng.integers(len(content) + 1)]
  elif kind == "empty":
    content = b""
  elif kind == "swap":
    content = other.read_bytes()
  file.write_bytes(content)
  if kind == "delete":
    file.unlink()
