"""Several processes are one run: same numbers, one log, stop together, fail together."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dgia_jax import distributed
from dgia_jax.errors import UserError
from dgia_jax.training import array_digests, checkpoint, checkpoint_arrays, checkpoint_record
from tests.helpers import checkpoint_of_several
from tests.helpers.command_line import STEPS, TINY, command
from tests.helpers.meshes import mesh_of
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.integration

LIMIT = 300  # seconds until a run counts as hanging


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
  return tmp_path_factory.mktemp("datasets")


def free_port():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


def environment_of(devices):
  """The environment of one of several processes, with so many CPU devices."""
  return os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    # Processes must run one and the same program: none may take an older one from a cache.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
  }


def start(datasets, workdir, count, devices, *more, last_one=()):
  """Starts `count` processes of `devices` CPU devices each; their output goes to files.

  All get the flags `more`, and the last one `last_one` as well.
  """
  port = free_port()
  started = []
  for number in range(count):
    flags = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
    flags += [f"--process_id={number}", *(last_one if number == count - 1 else ())]
    environment = environment_of(devices) | {"TFDS_DATA_DIR": str(datasets)}
    log = open(workdir.with_suffix(f".{number}.log"), "w")
    started.append(
      subprocess.Popen(
        command(*TINY, f"--workdir={workdir}", *(flags if count > 1 else []), *more),
        cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
      )
    )  # fmt: skip
  return started


def output(workdir, number):
  return workdir.with_suffix(f".{number}.log").read_text()


def end(started, workdir):
  """Waits for all; kills what hangs, and then fails. Returns the exit codes."""
  try:
    return [process.wait(timeout=LIMIT) for process in started]
  finally:
    for number, process in enumerate(started):
      if process.poll() is None:
        process.kill()
        print(f"process {number} hung:", output(workdir, number)[-3000:])


def run(datasets, workdir, count, devices, *more):
  """Runs to the end; fails with the output of all."""
  codes = end(start(datasets, workdir, count, devices, *more), workdir)
  assert codes == [0] * count, [output(workdir, number)[-2000:] for number in range(count)]


def wait_for_step(started, workdir, step):
  finish = time.time() + LIMIT
  while step not in checkpoint.steps_saved(workdir):
    assert all(process.poll() is None for process in started), output(workdir, 0)[-3000:]
    assert time.time() < finish, "the step was never saved"
    time.sleep(0.01)


def training_lines(workdir):
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return [line for line in lines if line["split"] == "train"]


def saved_state(workdir, step):
  """The state of a checkpoint as numpy arrays."""
  with ocp.PyTreeCheckpointer() as reader:
    path = workdir / checkpoint.FOLDER / str(step) / "state"
    tree = reader.metadata(path).item_metadata.tree
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return reader.restore(path, args=ocp.args.PyTreeRestore(item=tree, restore_args=how))


def assert_same_run(workdir, expected):
  """Same losses, relations, bank and scores, up to the order in which sums are taken."""
  ours, theirs = training_lines(workdir), training_lines(expected)
  assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
  for line, other in zip(ours, theirs, strict=True):
    for name in ("loss", "loss_itc", "loss_local", "loss_global", "loss_consistency"):
      np.testing.assert_allclose(line[name], other[name], rtol=2e-4, atol=1e-5, err_msg=name)
    for name in ("local_relations", "global_relations", "global_precision"):
      assert line.get(name) == other.get(name), (line["step"], name)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=2e-3),
    saved_state(workdir, STEPS)["bank"],
    saved_state(expected, STEPS)["bank"],
  )
  read = lambda folder: json.loads((folder / "results.json").read_text())
  assert read(workdir)["last"].keys() == read(expected)["last"].keys()
  assert read(workdir)["queries"] == read(expected)["queries"]


@pytest.fixture(scope="module")
def alone(datasets, tmp_path_factory):
  """One process with two devices."""
  workdir = tmp_path_factory.mktemp("alone") / "run"
  run(datasets, workdir, 1, 2)
  return workdir


@pytest.fixture(scope="module")
def pair(datasets, tmp_path_factory):
  """Two processes with a device each."""
  workdir = tmp_path_factory.mktemp("pair") / "run"
  run(datasets, workdir, 2, 1)
  return workdir


def test_two_processes_are_one_run(alone, pair):
  assert_same_run(pair, alone)
  assert "results on test" in output(pair, 0) and "results on test" not in output(pair, 1)


def test_a_killed_process_takes_the_other_along_and_all_resume(datasets, pair, tmp_path):
  workdir = tmp_path / "run"
  started = start(datasets, workdir, 2, 1)
  wait_for_step(started, workdir, 3)
  started[1].kill()
  killed = time.time()
  codes = end(started, workdir)
  assert time.time() - killed < 2 * distributed.HEARTBEAT_SECONDS
  assert codes[0] != 0 and codes[1] == -signal.SIGKILL
  said = output(workdir, 0)
  assert "error: process 0 of 2 stopped" in said or "distributed service" in said, said[-3000:]
  run(datasets, workdir, 2, 1)
  assert "resuming after step" in output(workdir, 0)
  assert_same_run(workdir, pair)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_to_one_stops_both_after_the_same_step(datasets, tmp_path, number):
  workdir = tmp_path / "run"
  started = start(datasets, workdir, 2, 1, "--config.num_epochs=200")
  wait_for_step(started, workdir, 3)
  started[1].send_signal(number)
  assert end(started, workdir) == [0, 0], output(workdir, 0)[-3000:]
  assert "stopped after step" in output(workdir, 0)
  stopped = max(checkpoint.steps_saved(workdir))
  assert f"stopped after step {stopped:,} of" in output(workdir, 0)
  assert "the state is saved" in output(workdir, 0)


def test_both_continue_from_the_checkpoint_before_a_damaged_one(datasets, pair, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(pair, workdir)
  shutil.rmtree(workdir / checkpoint.FOLDER / str(STEPS) / "state" / "d")
  run(datasets, workdir, 2, 1)
  text = output(workdir, 0)
  assert f"checkpoints/{STEPS} is damaged" in text and f"resuming after step {STEPS - 1}" in text
  assert "is damaged" not in output(workdir, 1)
  assert_same_run(workdir, pair)


def test_two_processes_save_restore_and_digest_without_a_whole_array(tmp_path):
  workdir, address = tmp_path / "run", f"127.0.0.1:{free_port()}"
  program = [sys.executable, "-m", "tests.helpers.checkpoint_of_several", address, "2"]
  started = []
  for number in range(2):
    log = open(workdir.with_suffix(f".{number}.log"), "w")
    started.append(
      subprocess.Popen(
        [*program, str(number), workdir],
        cwd=ROOT, env=environment_of(2), stdout=log, stderr=subprocess.STDOUT,
      )
    )  # fmt: skip
  outputs = [output(workdir, number) for number, _ in enumerate(end(started, workdir))]
  assert [process.returncode for process in started] == [0, 0], outputs
  digests = [re.findall(r"\b[0-9a-f]{64}\b", text) for text in outputs]
  state = checkpoint_of_several.host_state()
  assert digests == [2 * [checkpoint.digest(state, checkpoint_of_several.NUM_PAIRS)]] * 2
  step = int(state.step)
  record = checkpoint_record.read(workdir / checkpoint.FOLDER / str(step))
  assert record.checksums == array_digests.checksums(checkpoint_arrays.named(state))
  assert (record.score, record.run) == (1.0, {"data_position": step})
  abstract = jax.eval_shape(checkpoint_of_several.initializer())
  restored, _ = checkpoint.Checkpoints(workdir).restore(step, mesh_of(1, 1, 1), abstract)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), state)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["2,1,2", "2,2,1", "1,2,2", "1,1,4"])
def test_four_processes_are_one_run_on_any_mesh(datasets, alone, tmp_path, mesh):
  """Also where processes hold the same rows of the batch, because the tensor axis divides them."""
  sizes = zip(("data", "fsdp", "tensor"), mesh.split(","), strict=True)
  flags = [f"--config.mesh.{axis}={size}" for axis, size in sizes]
  workdir = tmp_path / "run"
  run(datasets, workdir, 4, 1, *flags)
  assert_same_run(workdir, alone)


@pytest.mark.slow
def test_a_checkpoint_of_four_goes_on_with_two_and_one(datasets, alone, tmp_path):
  workdir = tmp_path / "run"
  for count, step in ((4, 3), (2, 7)):
    started = start(datasets, workdir, count, 1)
    wait_for_step(started, workdir, step)
    for process in started:
      process.send_signal(signal.SIGTERM)
    assert end(started, workdir) == [0] * count, output(workdir, 0)[-3000:]
  run(datasets, workdir, 1, 1)
  assert "resuming after step" in output(workdir, 0)
  assert_same_run(workdir, alone)


@pytest.mark.slow
def test_strict_mining_is_the_same_for_two_processes(datasets, tmp_path):
  strict = ("--config.strict_mining.reciprocal=True",)
  run(datasets, tmp_path / "one", 1, 2, *strict)
  run(datasets, tmp_path / "two", 2, 1, *strict)
  assert_same_run(tmp_path / "two", tmp_path / "one")


def test_a_mistake_in_one_ends_both(datasets, tmp_path):
  """The other one waits for it to come along and hears that it never will."""
  workdir = tmp_path / "run"
  started = start(datasets, workdir, 2, 1, last_one=["--config.batch_size=7"])
  assert started[1].wait(timeout=LIMIT) == 2
  ended = time.time()
  assert end(started, workdir)[0] != 0
  assert time.time() - ended < 2 * distributed.HEARTBEAT_SECONDS
  assert "error: config.batch_size=7" in output(workdir, 1)
  assert "error" in output(workdir, 0).lower()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
@pytest.mark.parametrize("lost", [0, 1])
def test_whichever_is_lost_takes_the_other_along(datasets, tmp_path, how, lost):
  """A frozen process keeps its connections open, as one on a machine that lost power does."""
  workdir = tmp_path / "run"
  started = start(datasets, workdir, 2, 1, "--config.num_epochs=2000")
  wait_for_step(started, workdir, 3)
  started[lost].send_signal(how)
  since = time.time()
  try:
    assert started[1 - lost].wait(timeout=3 * distributed.HEARTBEAT_SECONDS) != 0
    assert time.time() - since < 2 * distributed.HEARTBEAT_SECONDS
  finally:
    for process in started:
      process.kill()
      process.wait()
  assert "error" in output(workdir, 1 - lost).lower(), output(workdir, 1 - lost)[-3000:]


def test_flags_belong_together(monkeypatch):
  with pytest.raises(UserError, match="--num_processes, --process_id missing"):
    distributed.start("127.0.0.1:1")
  with pytest.raises(UserError, match="--process_id=2: must be from 0 to 1"):
    distributed.start("127.0.0.1:1", 2, 2)
  monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
  distributed.start()
  assert not distributed.several()


def test_a_full_device_is_not_taken_for_the_loss_of_another_process(monkeypatch):
  ended = []
  monkeypatch.setattr(distributed, "several", lambda: True)
  monkeypatch.setattr(distributed.stop_signals, "leave", lambda *arguments: ended.append(arguments))
  for text in ("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes", "UNAVAILABLE: lost"):
    with pytest.raises(SystemExit), distributed.failing_together():
      raise jax.errors.JaxRuntimeError(text)
  (full_code, full), (lost_code, lost) = ended
  assert full_code == 2 and "has too little memory" in full
  assert "config.eval.batch_size: docs/scaling.md#when-memory-is-short" in full
  assert "another process" not in full
  assert lost_code == 3 and "another process ended" in lost
