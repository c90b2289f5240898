"""The oracle's command line is that of `dgia_jax.main`."""

import io

import pytest
from absl import flags

from dgia_jax import main
from dgia_jax.reporting.console import Console
from dgia_jax.training import inputs
from dgia_jax.training import train as train_lib
from experiments.oracle import train
from tests.helpers import tiny_run
from tests.helpers.paths import ROOT


@pytest.fixture
def calls(monkeypatch):
  """The arguments of each training that `run` started, in place of the training."""
  made = []
  monkeypatch.setattr(train, "train", lambda *arguments: made.append(arguments))
  yield made
  flags.FLAGS.unparse_flags()
  main.FLAGS.oracle = main.FLAGS.workdir = None
  delattr(flags.FLAGS, "oracle")


def run(monkeypatch, *arguments):
  config = f"--config={ROOT / 'configs' / 'synth_pedes.py'}:scratch"
  monkeypatch.setattr("sys.argv", ["train", config, *arguments])
  train.run()


def test_the_oracle_replaces_the_training(calls, monkeypatch, tmp_path):
  run(monkeypatch, "--oracle=captions", f"--workdir={tmp_path}", "--config.batch_size=32")
  ((oracle, config, workdir, _),) = calls
  assert (oracle, config.batch_size, workdir) == ("captions", 32, str(tmp_path))


@pytest.mark.parametrize("oracle", train.ORACLES)
def test_the_training_marks_its_run(monkeypatch, tmp_path, oracle):
  given = {}
  monkeypatch.setattr(inputs, "load_splits", lambda config: tiny_run.splits())
  monkeypatch.setattr(train_lib, "train", lambda *arguments, **named: given.update(named))
  train.train(oracle, tiny_run.config(mesh__data=-1), tmp_path, Console(file=io.StringIO()))
  assert given["identity_labels"] == f"oracle {oracle}"


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--workdir=x"], "--oracle is missing"),
    (["--oracle=relations"], "--workdir is missing"),
    (["--oracle=relations", "--workdir=x", "stray"], "unexpected argument 'stray'"),
    (["--oracle=relations", "--workdir=s3://a/b"], "of remote paths only gs:// is supported"),
    (["--oracle=relations", "--workdir=x", "--mode=evaluate"], "holds no run"),
  ],
)
def test_mistakes_end_in_one_line(calls, monkeypatch, capsys, arguments, message):
  with pytest.raises(SystemExit):
    run(monkeypatch, *arguments)
  assert message in capsys.readouterr().err and not calls
