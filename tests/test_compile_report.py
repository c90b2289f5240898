"""The report of a compiled step agrees with the arrays themselves, and bad input is named."""

import io

import jax
import numpy as np
import pytest

from configs import cuhk_pedes, synth_pedes
from dgia_jax import build, compile_report, console, topology, train_state
from dgia_jax.errors import UserError

PAIRS = 10_000


def config(**fields):
  chosen = synth_pedes.get_config()
  chosen.batch_size = 16
  chosen.mesh.fsdp = 2
  with chosen.unlocked():
    chosen.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
  return chosen


@pytest.fixture(scope="module")
def found():
  return compile_report.measure(config(), "cpu:8", PAIRS)


def test_memory_is_that_of_the_arrays(found):
  run = compile_report.abstract_run(config(), jax.devices(), PAIRS)
  state = train_state.create(run.mesh, build.init_state(run))
  first = lambda leaf: leaf.addressable_shards[0].data.nbytes
  size = lambda tree: sum(map(first, jax.tree.leaves(tree)))
  memory = found["memory_bytes"]
  assert memory["parameters"] == size(state.params)
  assert memory["optimizer"] == size(state.opt_state)
  assert memory["bank"] == size(state.bank)
  parts = [value for name, value in memory.items() if name not in ("total", "has")]
  assert sum(parts) == memory["total"] and min(parts) > 0
  assert found["fits"] and found["mesh"] == [4, 2, 1] and found["chips"] == 8


def test_no_collective_grows_with_the_bank(found):
  larger = compile_report.measure(config(), "cpu:8", 8 * PAIRS)
  sent = lambda found: sorted((c["kind"], c["bytes"], c["times"]) for c in found["collectives"])
  assert sent(larger) == sent(found) and len(found["collectives"]) > 10
  # The largest hold all features, or all winning rows of both modalities: 16 x (1 + 3) x 64 x 4.
  searching = [c for c in found["collectives"] if "shard_map" in c["source"]]
  assert searching and max(c["bytes"] for c in searching) <= 16 * 4 * 64 * 4
  assert larger["memory_bytes"]["bank"] > 6 * found["memory_bytes"]["bank"]


def test_the_report_is_shown(found):
  text = io.StringIO()
  console.Console(file=text).compile_report(found)
  for word in ("parameters", "bank", "total", "all-to-all", "cpu:8", "10,000 rows"):
    assert word in text.getvalue(), word


def test_what_does_not_fit_says_by_how_much(monkeypatch):
  monkeypatch.setattr(topology, "memory_of", lambda name: 2**20)
  with pytest.raises(UserError, match=r"does not fit cpu:8: 0.\d+ GiB a chip, 0.\d+ GiB too much"):
    compile_report.report(config(), "cpu:8", PAIRS, console.Console(active=False))


def test_the_compilers_own_refusal_is_understood(monkeypatch):
  def refuse(*_):
    raise jax.errors.JaxRuntimeError(
      "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
      "Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G."
    )

  monkeypatch.setattr(compile_report.train_step, "compile_step", refuse)
  found = compile_report.measure(config(), "cpu:8", PAIRS)
  memory = found["memory_bytes"]
  assert not found["fits"]
  assert np.isclose((memory["total"] - memory["has"]) / 2**30, 4.75, atol=1e-6)


def test_mistakes():
  quiet = console.Console(active=False)
  with pytest.raises(UserError, match="--num_pairs"):
    compile_report.report(config(), "cpu:8", None, quiet)
  with pytest.raises(UserError, match="config.batch_size=6"):
    compile_report.report(config(batch_size=6), "cpu:8", PAIRS, quiet)
  with pytest.raises(UserError, match="device_count=9"):
    compile_report.report(config(), "cpu:9", PAIRS, quiet)
  assert compile_report.NUM_PAIRS[cuhk_pedes.get_config().dataset.name] == 68_108
