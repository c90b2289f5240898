"""A worker that would start the work again ends; every other process goes on."""

import multiprocessing
import types

import pytest

from dgia_jax import worker_processes


@pytest.mark.parametrize(
  ("name", "importing", "leaves"),
  [
    ("MainProcess", False, False),
    (f"{worker_processes.NAME}-0", False, False),
    (f"{worker_processes.NAME}-0", True, True),
    ("SpawnProcess-1", True, False),
  ],
)
def test_only_a_worker_that_imports_the_main_script_leaves(monkeypatch, name, importing, leaves):
  process = types.SimpleNamespace(name=name, _inheriting=importing)
  exits = []
  monkeypatch.setattr(multiprocessing, "current_process", lambda: process)
  monkeypatch.setattr(worker_processes.os, "_exit", exits.append)
  worker_processes.leave_if_work_is_repeated()
  assert exits == [worker_processes.UNGUARDED_EXIT] * leaves
