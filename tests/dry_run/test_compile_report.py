"""The report of a compiled step agrees with the arrays themselves, and bad input is named."""

import io
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import cuhk_pedes, synth_pedes
from dgia_jax.data import batches as batches_lib
from dgia_jax.dry_run import compile_report, flops, topology
from dgia_jax.errors import UserError
from dgia_jax.method import train_state
from dgia_jax.models import dual_encoder, pretrained
from dgia_jax.reporting import console
from dgia_jax.training import setup
from tests.helpers import settings, tiny_run
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.integration

PAIRS = 10_000


def config(**fields):
  chosen = synth_pedes.get_config("scratch")
  chosen.batch_size = 16
  chosen.mesh.fsdp = 2
  with chosen.unlocked():
    settings.change(chosen, **fields)
  return chosen


@pytest.fixture(scope="module")
def found():
  return compile_report.measure(config(), "cpu:8", PAIRS)


def test_memory_is_that_of_the_arrays(found):
  run = compile_report.abstract_setup(config(), jax.devices(), PAIRS)
  state = train_state.create(run.mesh, setup.state_initializer(run))
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
  searching = [c for c in found["collectives"] if c["of_bank"]]
  assert {"all-to-all", "reduce-scatter"} <= {c["kind"] for c in searching}
  assert max(c["bytes"] for c in searching) <= 16 * 4 * 64 * 4
  assert larger["memory_bytes"]["bank"] > 6 * found["memory_bytes"]["bank"]


def test_fsdp_gathers_parameters_and_sends_no_activations(found):
  gathers = [c for c in found["collectives"] if c["kind"] == "all-gather"]
  assert any("dgia_jax/sharding.py" in c["source"] for c in gathers)
  # 33 tokens of an image: only activations have such an axis.
  assert not [c["shapes"] for c in found["collectives"] if c["looped"] and ",33," in c["shapes"]]


def test_sources_are_named_without_the_folder_they_are_installed_in(found):
  assert not [c["source"] for c in found["collectives"] if " /" in c["source"]]


def test_the_report_is_shown(found):
  text = io.StringIO()
  console.Console(file=text).compile_report(found)
  for word in ("parameters", "bank", "total", "all-to-all", "cpu:8", "10,000 rows"):
    assert word in text.getvalue(), word


def test_no_number_is_cut_on_a_narrow_terminal(found, monkeypatch):
  monkeypatch.setenv("COLUMNS", "80")
  text = io.StringIO()
  console.Console(file=text).compile_report(found)
  assert "…" not in text.getvalue()


def test_the_batch_is_the_pipelines():
  """Names, dtypes and shapes of what training would send."""
  pairs = tiny_run.splits()["train"]
  chosen = tiny_run.config()
  tokens = np.zeros((pairs.num_pairs, chosen.tokenizer.context_length), np.int32)
  real = next(
    batches_lib.train_batches(
      pairs, tokens, batch_size=8, seed=0, num_epochs=1, start_step=0, workers=0
    )
  )
  form = lambda tree: {name: (x.shape, x.dtype) for name, x in tree.items()}
  assert form(compile_report.abstract_batch(chosen)) == form(real)


def test_counted_arithmetic(found):
  chosen, size = config(), dual_encoder.SIZES["tiny"]
  towers = 16 * flops.train_pair_flops(size, (64, 32), chosen.tokenizer.context_length)
  rest = flops.bank_flops(16, PAIRS, 64) + flops.loss_flops(16, 64, 3)
  assert found["flops_counted"] == pytest.approx((towers + rest) / 8)
  full = compile_report._counted_flops(config(model__full_last_block=True), PAIRS, 1)
  more = flops.train_pair_flops(size, (64, 32), chosen.tokenizer.context_length, 2, True)
  assert full == pytest.approx(16 * more + rest) and full > towers + rest
  alone = compile_report._counted_flops(config(loss__weights__global=0.0), PAIRS, 1)
  assert alone == pytest.approx(towers + flops.loss_flops(16, 64, k=0))
  search = flops.bank_flops(16, PAIRS, 64)
  for searches, fields in (
    (1, dict(loss__weights__global=0.0, caption_exchange__prob=0.5)),
    (1 + 3, dict(strict_mining__reciprocal=True)),
    (1 + 1, dict(bank__gate="rank")),
    (2, dict(global_association__anchor="both")),
  ):
    counted = compile_report._counted_flops(config(**fields), PAIRS, 1)
    k = 0 if "loss__weights__global" in fields else 3
    assert counted == pytest.approx(towers + searches * search + flops.loss_flops(16, 64, k))


def test_the_command_line():
  """Without data, workdir or accelerator; what does not work ends in one line."""
  variables = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  command = [sys.executable, "-m", "dgia_jax.main", "--mode=compile", "--num_pairs=5000"]
  command += ["--config=configs/synth_pedes.py", "--config.batch_size=16"]
  run = lambda *more: subprocess.run(
    [*command, *more], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300
  )
  done = run("--topology=cpu:2", "--config.mesh.fsdp=2")
  assert done.returncode == 0, done.stderr
  assert "bank of 5,000 rows" in done.stdout and "mesh 1 x 2 x 1" in done.stdout
  done = run()
  assert done.returncode == 2 and done.stderr.splitlines()[-1] == "error: --topology is missing"


def test_the_error_names_the_missing_memory(monkeypatch):
  monkeypatch.setattr(topology, "memory_of", lambda name: 2**20)
  match = r"does not fit cpu:8: 0.\d+ GiB per chip, 0.\d+ GiB too much"
  with pytest.raises(UserError, match=match):
    compile_report.report(config(), "cpu:8", PAIRS, console.Console(active=False))


@pytest.mark.parametrize(
  "message",
  [
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.",
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
    "required for HLO temporaries (20.50G) exceeds available HBM (15.75G). HLO module: jit_step.",
  ],
)
def test_an_out_of_memory_error_of_the_compiler_is_parsed(monkeypatch, message):
  def refuse(*_):
    raise jax.errors.JaxRuntimeError(message)

  monkeypatch.setattr(compile_report.compilation, "compile_step", refuse)
  memory = (found := compile_report.measure(config(), "cpu:8", PAIRS))["memory_bytes"]
  assert not found["fits"]
  assert np.isclose(memory["total"] - memory["has"], 4.75 * 2**30, rtol=1e-6)


def test_other_compiler_errors_propagate(monkeypatch):
  def fail(*_):
    raise jax.errors.JaxRuntimeError("INTERNAL: something else")

  monkeypatch.setattr(compile_report.compilation, "compile_step", fail)
  with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
    compile_report.measure(config(), "cpu:8", PAIRS)


def test_user_errors():
  quiet = console.Console(active=False)
  with pytest.raises(UserError, match="--num_pairs is missing.*custom"):
    compile_report.report(config(dataset__name="custom"), "cpu:8", None, quiet)
  with pytest.raises(UserError, match="config.batch_size=6"):
    compile_report.report(config(batch_size=6), "cpu:8", PAIRS, quiet)
  with pytest.raises(UserError, match="device_count=9"):
    compile_report.report(config(), "cpu:9", PAIRS, quiet)
  with pytest.raises(UserError, match="--num_pairs=0"):
    compile_report.report(config(), "cpu:8", 0, quiet)


def test_sizes_of_datasets_are_known():
  assert compile_report.known_pairs(cuhk_pedes.get_config()) == 68_108
  drawn = synth_pedes.get_config("small")
  assert compile_report.known_pairs(drawn) == 6 * drawn.dataset.options.train_people


def test_options_of_the_dataset_are_checked():
  drawn = synth_pedes.get_config("small")
  with drawn.unlocked():
    drawn.dataset.options = {"preset": "small", "workers": 2, "images_per_person": 3}
  assert compile_report.known_pairs(drawn) == 400 * 3
  for option, value in (("peopel", 5), ("preset", "huge"), ("train_people", "many")):
    with drawn.unlocked():
      drawn.dataset.options = {option: value}
    with pytest.raises(UserError, match=option):
      compile_report.known_pairs(drawn)


@pytest.mark.parametrize(
  "fields, rows",
  [
    (dict(tokenizer__vocab_size=1024), 1024),  # to be learned
    (dict(model__name="vit_b_16", tokenizer__name="openai/clip-vit-base-patch16"), 49_408),
    (dict(model__name="siglip_b_16", tokenizer__name="google/siglip-base-patch16-256"), 32_000),
    (dict(model__name="siglip_b_16", tokenizer__name="google/siglip2-base-patch16-256"), 256_000),
    (dict(model__name="siglip_b_16", tokenizer__name="a/folder"), 256_000),
  ],
)
def test_the_vocabulary_is_that_of_the_tokenizer(fields, rows):
  assert compile_report.vocabulary_size(config(**fields)) == rows


def test_the_vocabulary_of_a_shipped_model_is_read(shipped_mini):
  stored = pretrained.read_config(shipped_mini).vocab_size
  assert compile_report.vocabulary_size(config(pretrained="mini")) == stored != 1024
