import errno
import fcntl
import io
import os
import shutil

import pytest

from dgia_jax import distributed, files
from dgia_jax.errors import UserError
from dgia_jax.reporting.console import Console
from dgia_jax.training import checkpoint, evaluate, train
from dgia_jax.training import setup as setup_lib
from dgia_jax.training import workdir as workdir_lib
from tests.helpers import tiny_run


def test_a_folder_belongs_to_its_config(tmp_path):
  workdir_lib.create(tmp_path / "run")
  workdir_lib.check(tmp_path / "run", tiny_run.config(seed=4))
  assert not workdir_lib.is_claimed(tmp_path / "run")  # a check alone claims nothing
  workdir_lib.claim(tmp_path / "run", tiny_run.config())
  workdir_lib.check(tmp_path / "run", tiny_run.config())
  workdir_lib.check(tmp_path / "run", tiny_run.config(mesh__fsdp=2, log_every_steps=9))
  with pytest.raises(UserError, match="another config.*loss.temperature"):
    workdir_lib.check(tmp_path / "run", tiny_run.config(loss__temperature=0.5))


def test_a_check_creates_nothing(tmp_path):
  workdir_lib.check(tmp_path / "run", tiny_run.config())
  assert not (tmp_path / "run").exists()
  assert workdir_lib.create(str(tmp_path / "run")) == tmp_path / "run"
  assert (tmp_path / "run").is_dir()


def test_a_run_that_uses_identity_labels_is_marked_and_kept_apart(tmp_path):
  config, oracle, plain = tiny_run.config(), tmp_path / "oracle", tmp_path / "plain"
  for folder, use in ((oracle, "oracle relations"), (plain, "")):
    workdir_lib.create(folder)
    workdir_lib.check_identity_labels(folder, use)  # a new folder is free
    workdir_lib.claim(folder, config, use)
    assert workdir_lib.identity_labels(folder) == use
    workdir_lib.check_identity_labels(folder, use)
  with pytest.raises(UserError, match=r"identity labels \(oracle relations\), and .* uses none"):
    workdir_lib.check_identity_labels(oracle, "")
  message = "is not marked .*earlier release.* write oracle relations into .*/uses_identity_labels"
  with pytest.raises(UserError, match=message):
    workdir_lib.check_identity_labels(plain, "oracle relations")
  with pytest.raises(UserError, match="oracle captions"):
    workdir_lib.check_identity_labels(oracle, "oracle captions")
  with pytest.raises(UserError, match="uses identity labels"):  # before anything else
    train.train(config, oracle, Console(file=io.StringIO()), tiny_run.splits())


def test_the_mark_is_in_the_results_and_read_from_them(tmp_path):
  config = tiny_run.config(mesh__data=-1)
  setup = setup_lib.create(config, tmp_path, tiny_run.splits())
  assert workdir_lib.LABELS_KEY not in evaluate._facts(setup, 0.0)
  workdir_lib.claim(tmp_path, config, "oracle captions")
  facts = evaluate._facts(setup, 0.0)
  assert facts[workdir_lib.LABELS_KEY] == "oracle captions"
  (tmp_path / workdir_lib.LABELS_FILE).unlink()
  (tmp_path / workdir_lib.RESULTS).write_text("{")
  assert workdir_lib.identity_labels(tmp_path) == ""
  files.write_json(tmp_path / workdir_lib.RESULTS, facts)
  assert workdir_lib.identity_labels(tmp_path) == "oracle captions"


@pytest.mark.parametrize("content", [b"\xff\xfe", None], ids=["no text", "a folder"])
def test_a_mark_that_cannot_be_read_is_named(tmp_path, content):
  """It must not count as none."""
  mark = tmp_path / workdir_lib.LABELS_FILE
  mark.mkdir() if content is None else mark.write_bytes(content)
  with pytest.raises(UserError, match="uses_identity_labels.txt cannot be read"):
    workdir_lib.identity_labels(tmp_path)


def test_the_mark_of_a_training_that_did_not_begin_is_removed(tmp_path):
  (tmp_path / workdir_lib.LABELS_FILE).write_text("oracle relations")
  workdir_lib.claim(tmp_path, tiny_run.config())
  assert workdir_lib.identity_labels(tmp_path) == ""


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(UserError, match="--workdir=.*cannot be written"):
    workdir_lib.create(tmp_path / "file" / "run")


@pytest.mark.parametrize("name", ["exp[seed=0]", "a*", "really?"])
def test_a_name_from_which_nothing_could_be_restored_is_refused(tmp_path, name):
  with pytest.raises(UserError, match="--workdir=.*cannot be restored from a path with"):
    workdir_lib.create(tmp_path / name / "run")
  assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["two words", 'it\'s "quoted"', "50%#1", "a]", "größe", "-x"])
def test_checkpoints_in_a_folder_of_any_other_name_are_restored(known_run, tmp_path, name):
  workdir_lib.resolve(tmp_path / name)
  shutil.copytree(known_run, tmp_path / name)
  assert checkpoint.restore_params(tmp_path / name)[0] == 1


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  workdir = workdir_lib.create("~/run")
  workdir_lib.claim(workdir, tiny_run.config())
  assert (tmp_path / "run" / "config.json").exists() and not (tmp_path / "~").exists()
  assert workdir_lib.is_run("~/run")
  with pytest.raises(UserError, match="--workdir=~nobody-of-this-name"):
    workdir_lib.resolve("~nobody-of-this-name/run")
  for unreadable in ("~nobody-of-this-name/run", "a" * 300):
    with pytest.raises(UserError, match=f"--run={unreadable}[:/]"):
      workdir_lib.read_config(unreadable, "--run")
    assert not workdir_lib.is_run(unreadable)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "config.json is damaged"),
    (b'{"seed": ', "config.json is damaged"),
    (b"\xff\x00\x80", "config.json is damaged"),
    (b"[1, 2]", "config.json does not hold a JSON object"),
    (b'{"loss": 3}', "another config"),
  ],
)
def test_a_damaged_config_is_named(tmp_path, content, message):
  (tmp_path / "config.json").write_bytes(content)
  with pytest.raises(UserError, match=message) as caught:
    workdir_lib.check(tmp_path, tiny_run.config())
  assert "\n" not in str(caught.value)


def test_a_run_with_a_damaged_config_and_good_checkpoints_can_be_recovered(known_run, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(known_run, run)
  (run / "config.json").write_text("")
  with pytest.raises(UserError, match="damaged.*still usable: move config.json away") as caught:
    workdir_lib.read_config(run)
  assert "delete" not in str(caught.value)


def test_a_folder_without_a_run_is_named(tmp_path):
  with pytest.raises(UserError, match="holds no run"):
    workdir_lib.read_config(tmp_path)


def test_one_process_trains_in_a_folder_at_a_time(tmp_path):
  with workdir_lib.locked(tmp_path, pytest.fail):
    with pytest.raises(UserError) as caught:
      with workdir_lib.locked(tmp_path, pytest.fail):
        pytest.fail("both hold the lock")
  message = str(caught.value)
  assert f"process {os.getpid()} on " in message and ", started 20" in message
  with workdir_lib.locked(tmp_path, pytest.fail):
    pass  # the lock is free again


def test_the_other_processes_of_a_run_do_not_lock(tmp_path, monkeypatch):
  monkeypatch.setattr(workdir_lib.jax, "process_index", lambda: 1)
  with workdir_lib.locked(tmp_path, pytest.fail), workdir_lib.locked(tmp_path, pytest.fail):
    assert not (tmp_path / workdir_lib.LOCK).exists()


def test_a_file_system_without_locks_gets_a_warning(tmp_path, monkeypatch):
  def refuse(*arguments):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", refuse)
  messages = []
  with workdir_lib.locked(tmp_path, messages.append):
    assert len(messages) == 1 and "No locks available" in messages[0]


def test_a_process_that_sees_another_folder_stops(tmp_path, monkeypatch):
  monkeypatch.setattr(workdir_lib.jax, "process_index", lambda: 1)
  monkeypatch.setattr(distributed, "VISIBLE_SECONDS", 0.2)
  with pytest.raises(UserError, match="--workdir=.*all processes share"):
    workdir_lib.claim(tmp_path, tiny_run.config())
  assert not workdir_lib.is_claimed(tmp_path)


def test_a_process_with_another_config_stops(tmp_path, monkeypatch):
  workdir_lib.claim(tmp_path, tiny_run.config())
  monkeypatch.setattr(workdir_lib.jax, "process_index", lambda: 1)
  with pytest.raises(UserError, match="another config.*seed"):
    workdir_lib.claim(tmp_path, tiny_run.config(seed=7))
