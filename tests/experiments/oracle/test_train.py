"""The oracle's command line is that of `dgia_jax.main`."""

import pytest
from absl import flags

from dgia_jax import main
from experiments.oracle import train
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
