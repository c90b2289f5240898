"""Runs whose working directory is in a bucket: killed, resumed, evaluated, converted, searched."""

import io
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from dgia_jax import bucket, convert, remote
from dgia_jax.data import datasets, pairs
from dgia_jax.errors import UserError
from dgia_jax.reporting.console import Console
from dgia_jax.search import __main__ as search_cli
from dgia_jax.search.retriever import Retriever
from dgia_jax.training import checkpoint, evaluate, train
from dgia_jax.training import setup as setup_lib
from tests import test_distributed
from tests.helpers import command_line, fake_gcs, known_run, tiny_run
from tests.helpers.fake_gcs import gcs  # noqa: F401
from tests.helpers.paths import ROOT

# ruff: noqa: F811
pytestmark = pytest.mark.integration
FIELDS = {"mesh__data": 8, "checkpoint__every_steps": 2}
STEPS = 15

TRAIN = """
import sys
from tests.training import test_bucket_runs
test_bucket_runs.run(sys.argv[1])
"""


def run(url, **fields):
  """Trains in a bucket; returns the content of results.json and what the console shows."""
  out = io.StringIO()
  console = Console(file=out)
  config = tiny_run.config(**FIELDS | fields)
  with remote.mirrored(url, "--workdir", notify=console.print) as folder:
    results = train.train(config, folder, console, tiny_run.splits())
  return results, out.getvalue()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  """Results of the run on the local disk, and its log."""
  workdir = tmp_path_factory.mktemp("local")
  console = Console(file=io.StringIO())
  results = train.train(tiny_run.config(**FIELDS), workdir, console, tiny_run.splits())
  return results, tiny_run.metrics(workdir)


def steps_and_losses(lines):
  return [(line["split"], line["step"], line.get("loss")) for line in lines]


def test_a_killed_run_continues_on_a_fresh_machine(gcs, undisturbed, tmp_path):
  """SIGKILL in the middle of the sixth save; nothing but the bucket remains."""
  url = f"{gcs.url}/runs/a"

  def kill(method, path):
    if "checkpoints/12/" in path and path.endswith("manifest.ocdbt") and method == "POST":
      process.send_signal(signal.SIGKILL)
      return fake_gcs.DROP

  gcs.fault = kill
  environment = os.environ | {"DGIA_JAX_REMOTE_CACHE": str(tmp_path / "first_machine")}
  with subprocess.Popen([sys.executable, "-c", TRAIN, url], cwd=ROOT, env=environment) as process:
    assert process.wait(timeout=300) == -signal.SIGKILL
  gcs.fault = lambda method, path: None
  assert any(name.startswith("checkpoints/12/") for name in gcs.names(url))  # half of one
  assert checkpoint.steps_saved(bucket.epath.Path(url))[-2:] == [8, 10]

  results, output = run(url)
  assert "cannot be locked" in output and f"process {process.pid}" in output
  assert "resuming after step 10" in output
  assert results["digest"] == undisturbed[0]["digest"]
  lines = [json.loads(line) for line in gcs.content(f"{url}/metrics.jsonl").splitlines()]
  assert steps_and_losses(lines) == steps_and_losses(undisturbed[1])
  assert json.loads(gcs.content(f"{url}/results.json"))["digest"] == results["digest"]
  assert checkpoint.steps_saved(bucket.epath.Path(url))[-1] == STEPS
  assert not [name for name in gcs.names(url) if name == remote.OWNER]

  _, output = run(url)
  assert "finished already" in output


def test_a_save_that_is_refused_leaves_the_earlier_checkpoint(gcs, undisturbed, capfd):
  url = f"{gcs.url}/run"
  gcs.fault = lambda method, path: 403 if "checkpoints/6/state/" in path else None
  with pytest.raises(UserError, match=f"^{url}/checkpoints: Google Cloud Storage fails"):
    run(url)
  assert "Traceback" not in capfd.readouterr().err
  gcs.fault = lambda method, path: None
  assert checkpoint.steps_saved(bucket.epath.Path(url))[-1] == 5
  results, output = run(url)
  assert "resuming after step 5" in output
  assert results["digest"] == undisturbed[0]["digest"]


def test_a_connection_that_returns_is_no_error(gcs, undisturbed):
  drops = {"metrics.jsonl": 2, "checkpoints/5/state": 3}

  def fault(method, path):
    for part, count in drops.items():
      if part in path and count:
        drops[part] -= 1
        return fake_gcs.DROP

  gcs.fault = fault
  results, _ = run(f"{gcs.url}/run")
  assert not any(drops.values())
  assert results["digest"] == undisturbed[0]["digest"]


def test_a_damaged_checkpoint_is_moved_away(gcs):
  url = f"{gcs.url}/run"
  run(url)
  (data,) = [n for n in gcs.names(f"{url}/checkpoints/15/state/d")]
  address = f"{url}/checkpoints/15/state/d/{data}"
  gcs.put(address, bytes(len(gcs.content(address))))
  # A bucket that cannot be reached is no damage: nothing is moved.
  gcs.fault = lambda method, path: 403 if "checkpoints/15/state" in path else None
  with pytest.raises(UserError, match="checkpoints/15.*Google Cloud Storage fails|cannot be read"):
    restore_newest(url)
  gcs.fault = lambda method, path: None
  assert not gcs.names(f"{url}/damaged")

  with pytest.raises(UserError, match="checkpoints/15 is damaged"):
    evaluate_in(url)
  stored = gcs.names(f"{url}/checkpoints/15")
  assert restore_newest(url) == 14
  assert gcs.names(f"{url}/damaged/15") == stored
  assert not gcs.names(f"{url}/checkpoints/15")


def restore_newest(url):
  with remote.mirrored(url, "--workdir") as folder:
    setup = setup_lib.create(tiny_run.config(**FIELDS), folder, tiny_run.splits())
    checkpoints = checkpoint.Checkpoints(folder)
    step, *_ = checkpoints.restore_newest(setup.mesh, setup.abstract_state)
    return step


def evaluate_in(url):
  with remote.mirrored(url, "--workdir", claims=False) as folder:
    console = Console(file=io.StringIO())
    return evaluate.evaluate(tiny_run.config(**FIELDS), folder, console, tiny_run.splits())


def test_a_run_is_evaluated_and_starts_another(gcs, undisturbed):
  url = f"{gcs.url}/run"
  run(url)
  assert evaluate_in(url)["digest"] == undisturbed[0]["digest"]
  _, output = run(f"{gcs.url}/next", pretrained=url, num_epochs=1)
  assert f"weights from {url}; not used: none" in output
  config = json.loads(gcs.content(f"{gcs.url}/next/config.json"))
  assert config["pretrained"] == url
  assert gcs.content(f"{gcs.url}/next/tokenizer/tokenizer.json") == gcs.content(
    f"{url}/tokenizer/tokenizer.json"
  )
  with pytest.raises(UserError, match=f"--workdir={gcs.url}/next holds a run with another config"):
    run(f"{gcs.url}/next", num_epochs=2)


@pytest.mark.slow
def test_two_processes_train_in_a_bucket(gcs, tmp_path):
  """Each process writes its part of a checkpoint; the first writes the other files."""
  url = f"{gcs.url}/runs/two"
  started = test_distributed.start(tmp_path / "data", tmp_path / "log", 2, 1, f"--workdir={url}")
  codes = [process.wait(timeout=300) for process in started]
  logs = [test_distributed.output(tmp_path / "log", number)[-2000:] for number in (0, 1)]
  assert codes == [0, 0], logs
  names = gcs.names(url)
  assert sum(name.startswith("events.out.tfevents") for name in names) == 1
  assert {"config.json", "metrics.jsonl", "results.json", "tokenizer/tokenizer.json"} <= set(names)
  steps = checkpoint.steps_saved(bucket.epath.Path(url))
  assert steps[-1] == command_line.STEPS
  parts = {name.split("/")[0] for name in gcs.names(f"{url}/checkpoints/{steps[-1]}/state")}
  assert {"ocdbt.process_0", "ocdbt.process_1"} <= parts
  results = json.loads(gcs.content(f"{url}/results.json"))
  assert results["last"]["step"] == command_line.STEPS
  assert checkpoint.restore_params(remote.local_copy(url, "--run"), "last")[0] == steps[-1]
  assert not list((tmp_path / "remote_cache").glob("writing-*"))


def test_a_built_dataset_is_copied_from_a_bucket(gcs, tmp_path, monkeypatch):
  options = {"train_people": 3, "val_people": 2, "test_people": 2}
  load = lambda data_dir: datasets.load_builder(
    "synth_pedes", data_dir=data_dir, image_size=(64, 32), **options
  )
  with pytest.raises(UserError, match=f"synth_pedes is not built in data_dir={gcs.url}.* rsync"):
    load(f"{gcs.url}/data")
  built = load(str(tmp_path / "data"))
  gcs.put_folder(f"{gcs.url}/data", tmp_path / "data")
  monkeypatch.setenv("TFDS_DATA_DIR", f"{gcs.url}/data/")
  copy = load("")
  assert str(copy.data_dir).startswith(str(tmp_path / "remote_cache"))
  tables = [pairs.load_pairs(b, "train", (64, 32), "bilinear") for b in (built, copy)]
  assert tables[0].captions == tables[1].captions
  np.testing.assert_array_equal(tables[0].images[0], tables[1].images[0])


def test_a_run_is_converted_and_searched(gcs, tmp_path, capsys):
  url = f"{gcs.url}/runs/known"
  local = tmp_path / "run"
  local.mkdir()
  known_run.write_run(local)
  # As it would have been written to a bucket, where a file marks what is complete.
  for step in (1, 2):
    (local / "checkpoints" / str(step) / "commit_success.txt").write_text("")
  gcs.put_folder(url, local)

  ours, theirs = Retriever.from_pretrained(url), Retriever.from_pretrained(local)
  np.testing.assert_array_equal(ours.embed_texts("a red coat"), theirs.embed_texts("a red coat"))

  text = convert.convert(url, f"{gcs.url}/clip")
  assert f"wrote step 1 of {url} to {gcs.url}/clip" in text
  again = Retriever.from_pretrained(f"{gcs.url}/clip")
  np.testing.assert_allclose(
    again.embed_texts("a red coat"), ours.embed_texts("a red coat"), atol=1e-6
  )
  with pytest.raises(UserError, match=f"--out={url} holds a run"):
    convert.convert(url, url)

  images = known_run.write_images(tmp_path / "images", np.random.default_rng(0))
  index = ["index", f"--run={url}", f"--images={images}", f"--out={gcs.url}/index"]
  assert search_cli.main(index) == 0
  assert "10 images added" in capsys.readouterr().out
  assert not [n for n in gcs.names(f"{gcs.url}/index") if n.startswith(".")]
  (images / "a" / "3.png").unlink()
  assert search_cli.main(index) == 0
  assert "0 images added, 9 kept, 1 removed" in capsys.readouterr().out
  query = ["query", f"--index={gcs.url}/index", "a red coat", "--top=2", "--json"]
  assert search_cli.main(query) == 0
  answer = json.loads(capsys.readouterr().out)
  files = sorted(images.rglob("*.png"))
  scores, rows = ours.rank(ours.embed_texts("a red coat"), ours.embed_images(files), top=2)
  assert [one["path"] for one in answer["results"]] == [str(files[row]) for row in rows[0]]
  np.testing.assert_allclose([o["score"] for o in answer["results"]], scores[0], atol=1e-5)

  gcs.fault = lambda method, path: 403
  assert search_cli.main(query) == 2
  error = capsys.readouterr().err
  assert error.startswith(f"error: --index={gcs.url}/index: Google Cloud Storage fails")
  assert len(error.splitlines()) == 1
