import contextlib
import errno
import gc
import json
import shutil
import subprocess
import sys
import threading
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorstore

from dgia_jax import distributed
from dgia_jax.errors import UserError
from dgia_jax.method import train_state
from dgia_jax.training import checkpoint, checkpoint_arrays, checkpoint_record
from tests.helpers import compiled_bank
from tests.helpers.meshes import mesh_of
from tests.helpers.paths import ROOT

RECORD = {"data_position": 3, "epoch": 1}


def initializer(width=8):
  def params():
    key = jax.random.key(0)
    return {"mlp": {"up": {"kernel": jax.random.normal(key, (width, 4 * width))}}}

  return train_state.initializer(params, optax.adam(1e-3), num_pairs=20, feature_dim=8)


def state_on(mesh, step=3):
  """A state whose bank, optimizer state and parameters differ between steps."""
  state = train_state.create(mesh, initializer())
  index = np.arange(20, dtype=np.int32)
  features = np.random.default_rng(step).normal(size=(20, 8)).astype(np.float32)
  bank = compiled_bank.update(
    state.bank, index, index, features, -features, np.ones(20, np.float32), mesh=mesh
  )
  params, opt_state = jax.tree.map(lambda x: x + step, (state.params, state.opt_state))
  return state.replace(step=state.step + step, params=params, bank=bank, opt_state=opt_state)


def abstract_state(width=8):
  return jax.eval_shape(initializer(width))


def save(workdir, *steps, scores=None, **options):
  """Saves a checkpoint per step, closes them and returns the states on the host by step."""
  states = {step: state_on(mesh_of(1, 1, 1), step) for step in steps}
  checkpoints = checkpoint.Checkpoints(workdir, **options)
  for step, state in states.items():
    record = RECORD | {"data_position": step}
    checkpoints.save(state, record)
    if scores and step in scores:
      checkpoints.add_score(step, record, scores[step])
    checkpoints.wait()
  checkpoints.close()
  return {step: jax.device_get(state) for step, state in states.items()}


def restore_newest(workdir, **options):
  """(step, state on the host, record, messages)."""
  messages = []
  checkpoints = checkpoint.Checkpoints(workdir, notify=messages.append, **options)
  step, state, record = checkpoints.restore_newest(mesh_of(1, 1, 1), abstract_state())
  checkpoints.close()
  return step, jax.device_get(state), record, messages


def assert_equal(tree, expected):
  jax.tree.map(np.testing.assert_array_equal, tree, expected)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
  """A working directory with the checkpoints 3 and 4, and their states."""
  workdir = tmp_path_factory.mktemp("two_steps")
  return workdir, save(workdir, 3, 4)


@pytest.fixture
def workdir(two_steps, tmp_path):
  """A copy that a test may damage."""
  shutil.copytree(two_steps[0], tmp_path / "run")
  return tmp_path / "run"


def data_file(workdir, step):
  """The largest file with arrays of a checkpoint."""
  files = (workdir / checkpoint.FOLDER / str(step)).glob("state/d/*")
  return max(files, key=lambda file: file.stat().st_size)


@pytest.mark.parametrize(
  "saved_on, restored_on", [((2, 2, 2), (1, 1, 1)), ((1, 1, 1), (2, 4, 1))], ids=str
)
def test_any_mesh_restores_the_checkpoint_of_any_mesh(tmp_path, saved_on, restored_on):
  state = state_on(mesh_of(*saved_on))
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(state, RECORD)
  checkpoints.wait()
  restored, record = checkpoints.restore(3, mesh_of(*restored_on), abstract_state())
  checkpoints.close()
  assert record == RECORD
  assert_equal(jax.device_get(restored), jax.device_get(state))
  assert len(restored.bank.image.sharding.device_set) == int(np.prod(restored_on))
  assert checkpoint.digest(restored, 20) == checkpoint.digest(state, 20)


def test_a_checkpoint_that_a_network_disk_shows_late_is_waited_for(workdir, two_steps, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  monkeypatch.setattr(distributed, "VISIBLE_SECONDS", 0.3)
  folder = workdir / checkpoint.FOLDER
  (folder / "4").rename(folder / "hidden")
  restore = lambda: checkpoint.Checkpoints(workdir).restore(4, mesh_of(1, 1, 1), abstract_state())
  with pytest.raises(UserError, match="checkpoints/4: process 1 does not see the files"):
    restore()
  monkeypatch.setattr(distributed, "VISIBLE_SECONDS", 60)
  timer = threading.Timer(0.3, (folder / "hidden").rename, [folder / "4"])
  timer.start()
  state, _ = restore()
  assert_equal(jax.device_get(state), two_steps[1][4])


def test_a_process_reads_only_what_its_devices_hold(workdir, monkeypatch):
  read_bytes, read = [], tensorstore.TensorStore.read

  def counted(store, *arguments, **options):
    read_bytes.append(int(np.prod(store.shape)) * store.dtype.numpy_dtype.itemsize)
    return read(store, *arguments, **options)

  monkeypatch.setattr(tensorstore.TensorStore, "read", counted)
  mesh = mesh_of(2, 2, 2)
  state, _ = checkpoint.Checkpoints(workdir).restore(4, mesh, abstract_state())
  assert max(read_bytes) == state.bank.image.nbytes // 8
  assert sum(read_bytes) == sum(array.nbytes for array in jax.tree.leaves(state))


def test_the_newest_and_the_best_are_kept(tmp_path):
  save(tmp_path, *range(1, 7), scores={1: 10.0, 2: 50.0, 4: 20.0, 6: 30.0}, keep=2)
  assert checkpoint.steps_saved(tmp_path) == [2, 5, 6]
  checkpoints = checkpoint.Checkpoints(tmp_path)
  assert (checkpoints.latest(), checkpoints.best()) == (6, 2)


def test_a_restarted_run_still_keeps_the_best(tmp_path):
  save(tmp_path, 1, 2, scores={1: 50.0, 2: 10.0}, keep=1)
  save(tmp_path, 3, 4, scores={4: 50.0}, keep=1)  # of equal scores, the later one is the best
  assert checkpoint.steps_saved(tmp_path) == [4]
  assert checkpoint.Checkpoints(tmp_path).best() == 4


def test_a_score_is_added_to_a_saved_checkpoint(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
  for step, score in ((1, 20.0), (2, 50.0), (3, 10.0)):
    checkpoints.save(state_on(mesh_of(1, 1, 1), step), RECORD)
    checkpoints.add_score(step, RECORD | {"epoch": step}, score)
  assert checkpoint.steps_saved(tmp_path) == [2, 3]  # 1 went when 2 turned out to be better
  checkpoints.close()
  again = checkpoint.Checkpoints(tmp_path, keep=1)
  assert again.best() == 2
  state, record = again.restore(2, mesh_of(1, 1, 1), abstract_state())
  assert record == RECORD | {"epoch": 2} and int(state.step) == 2
  again.add_score(3, RECORD, 90.0)  # of a process that has saved nothing
  assert checkpoint.steps_saved(tmp_path) == [3] and again.best() == 3
  again.close()


def test_a_state_may_be_donated_while_it_is_written(tmp_path):
  mesh = mesh_of(1, 1, 1)
  state = state_on(mesh)
  expected = jax.tree.map(np.array, jax.device_get(state))
  overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 7, state), donate_argnums=0)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(state, RECORD)
  for _ in range(5):
    state = overwrite(state)
  checkpoints.wait()
  restored, _ = checkpoints.restore(3, mesh, abstract_state())
  checkpoints.close()
  assert_equal(jax.device_get(restored), expected)


def test_the_leftovers_of_a_killed_save_are_ignored_and_removed(tmp_path):
  save(tmp_path, 3)
  leftover = tmp_path / checkpoint.FOLDER / "9.orbax-checkpoint-tmp-1"
  leftover.mkdir()
  (leftover / "state").write_text("half")
  assert checkpoint.steps_saved(tmp_path) == [3]
  assert checkpoint.Checkpoints(tmp_path).latest() == 3
  save(tmp_path, 4)
  assert not leftover.exists()


def test_a_checkpoint_of_another_model_is_refused_and_stays(two_steps):
  workdir, _ = two_steps
  checkpoints = checkpoint.Checkpoints(workdir)
  message = r"checkpoints/4: cannot be restored .* params/mlp/up/kernel: float32 \(8, 32\) in the"
  with pytest.raises(UserError, match="checkpoints/4: cannot be restored"):
    checkpoints.restore_newest(mesh_of(1, 1, 1), abstract_state(width=16))
  shapes = abstract_state()
  other = shapes.replace(params=abstract_state(width=16).params)
  with pytest.raises(UserError, match=message):
    checkpoints.restore(4, mesh_of(1, 1, 1), other)
  assert checkpoint.steps_saved(workdir) == [3, 4]


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


def test_checkpoints_of_earlier_releases_are_restored(tmp_path):
  """They hold no checksums, and the score is an item of its own."""
  states = {step: state_on(mesh_of(1, 1, 1), step) for step in (1, 2)}
  options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["score"])
  with ocp.CheckpointManager(
    tmp_path / checkpoint.FOLDER, item_names=("state", "record"), options=options
  ) as manager:
    for step, state in states.items():
      items = {"state": ocp.args.StandardSave(state), "record": ocp.args.JsonSave(RECORD)}
      manager.save(step, args=ocp.args.Composite(**items), metrics={"score": 10.0 - step})
  step, state, record, messages = restore_newest(tmp_path)
  assert (step, record) == (2, RECORD)
  assert_equal(state, jax.device_get(states[2]))
  assert len(messages) == 1 and "no checksums" in messages[0]
  assert checkpoint.restore_params(tmp_path, "best")[0] == 1


def test_the_last_block_of_a_checkpoint_that_stacked_it_is_found(tmp_path):
  """It was the last layer of the stack, in the parameters and in the optimizer's state."""

  def initializer(stacks_last):
    def params():
      kernel = jnp.arange(24.0).reshape(3, 2, 4)
      up = lambda kernel: {"mlp": {"up": {"kernel": kernel}}}
      apart = {"blocks": up(kernel[:-1]), "last_block": up(kernel[-1])}
      return {"text": {"blocks": up(kernel)} if stacks_last else apart}

    return train_state.initializer(params, optax.adam(1e-3), num_pairs=20, feature_dim=8)

  mesh = mesh_of(1, 1, 1)
  with contextlib.closing(checkpoint.Checkpoints(tmp_path)) as checkpoints:
    checkpoints.save(train_state.create(mesh, initializer(True)), RECORD)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  _, state, _ = checkpoints.restore_newest(mesh, jax.eval_shape(initializer(False)))
  assert_equal(jax.device_get(state), jax.device_get(train_state.create(mesh, initializer(False))))
  assert_equal(checkpoint.restore_params(tmp_path)[1], jax.device_get(state.params))


# Without its second line, what is imported under the limit would leave truncated bytecode behind.
FULL_DISK = """
import resource, sys
sys.dont_write_bytecode = True
from dgia_jax import distributed
from dgia_jax.training import checkpoint
from tests.training import test_checkpoint as helpers

with distributed.failing_together():
  checkpoints = checkpoint.Checkpoints(sys.argv[1])
  for step in (3, 4):
    checkpoints.save(helpers.state_on(helpers.mesh_of(1, 1, 1), step), helpers.RECORD)
    checkpoints.wait()
    hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard_limit))
"""


def test_a_full_disk_ends_in_one_line_and_loses_nothing(tmp_path, two_steps):
  """A limit on the size of files stands for the full disk: its errors take the same way."""
  done = subprocess.run(
    [sys.executable, "-c", FULL_DISK, tmp_path], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
  assert f"error: {tmp_path}/checkpoints: the disk is full (a checkpoint needs" in done.stderr
  step, state, _, _ = restore_newest(tmp_path)
  assert step == 3
  assert_equal(state, two_steps[1][3])
  save(tmp_path, 4)
  names = {entry.name for entry in (tmp_path / checkpoint.FOLDER).iterdir()}
  assert names == {"3", "4"}  # the leftovers are gone


def test_other_write_errors_are_not_taken_for_a_full_disk(tmp_path, monkeypatch):
  def fail(*arguments, **options):
    raise OSError(errno.EIO, "Input/output error")

  monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
  with pytest.raises(OSError, match="Input/output error"):
    checkpoint.Checkpoints(tmp_path).save(state_on(mesh_of(1, 1, 1)), RECORD)


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
