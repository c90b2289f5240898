import pathlib

import jax
import pytest

from dgia_jax.training import compilation_cache


@pytest.fixture(autouse=True)
def restore_config():
  """The tests' own cache stays in use."""
  before = jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache
  yield
  jax.config.update("jax_compilation_cache_dir", before[0])
  jax.config.update("jax_enable_compilation_cache", before[1])


def test_the_default_folder_is_the_users_cache(monkeypatch, tmp_path):
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  monkeypatch.setattr(pathlib.Path, "home", lambda: tmp_path)
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.enable()
  assert compilation_cache.folder() == str(tmp_path / ".cache" / "dgia_jax" / "compiled")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
  assert compilation_cache.default_folder() == tmp_path / "other" / "dgia_jax" / "compiled"


def test_a_folder_that_the_user_chose_is_kept(tmp_path):
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))
  compilation_cache.enable()
  assert compilation_cache.folder() == str(tmp_path)


def test_it_can_be_switched_off():
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.enable()
  assert compilation_cache.folder() is None


def test_programs_of_several_cpu_devices_are_not_cached(monkeypatch):
  assert jax.device_count() == 8
  compilation_cache.enable()
  assert compilation_cache.folder() is not None  # the flag of these tests makes it safe
  monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
  compilation_cache.enable()
  assert compilation_cache.folder() is None
