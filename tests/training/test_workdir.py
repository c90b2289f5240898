import pytest

from dgia_jax.errors import UserError
from dgia_jax.training import workdir as workdir_lib
from tests.helpers import tiny_run


def test_a_folder_belongs_to_its_config(tmp_path):
  workdir_lib.check(tmp_path / "run", tiny_run.config(seed=4))
  assert not workdir_lib.is_claimed(tmp_path / "run")  # looking claims nothing
  workdir_lib.claim(tmp_path / "run", tiny_run.config())
  workdir_lib.check(tmp_path / "run", tiny_run.config())
  workdir_lib.check(tmp_path / "run", tiny_run.config(mesh__fsdp=2, log_every_steps=9))
  with pytest.raises(UserError, match="another config.*loss.temperature"):
    workdir_lib.check(tmp_path / "run", tiny_run.config(loss__temperature=0.5))


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(UserError, match="--workdir=.*cannot be written"):
    workdir_lib.check(tmp_path / "file" / "run", tiny_run.config())


def test_a_folder_without_a_run_and_a_damaged_one(tmp_path):
  with pytest.raises(UserError, match="holds no run"):
    workdir_lib.read_config(tmp_path)
  (tmp_path / "config.json").write_text('{"seed": ')
  with pytest.raises(UserError, match="config.json is damaged"):
    workdir_lib.check(tmp_path, tiny_run.config())


def test_a_process_that_sees_another_folder_stops(tmp_path, monkeypatch):
  monkeypatch.setattr(workdir_lib.jax, "process_index", lambda: 1)
  monkeypatch.setattr(workdir_lib, "VISIBLE_SECONDS", 0.2)
  with pytest.raises(UserError, match="--workdir=.*all processes share"):
    workdir_lib.claim(tmp_path, tiny_run.config())
  assert not workdir_lib.is_claimed(tmp_path)


def test_a_process_with_another_config_stops(tmp_path, monkeypatch):
  workdir_lib.claim(tmp_path, tiny_run.config())
  monkeypatch.setattr(workdir_lib.jax, "process_index", lambda: 1)
  with pytest.raises(UserError, match="another config.*seed"):
    workdir_lib.claim(tmp_path, tiny_run.config(seed=7))
