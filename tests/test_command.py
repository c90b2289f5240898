"""The command `dgia` hands its arguments to the programs."""

import pytest

from dgia_jax import __main__ as command
from dgia_jax import main as run_main


@pytest.mark.parametrize("flags", [["--pretrained", "a b.pth"], ["--pretrained=a b.pth"]])
def test_pretrained_is_short_for_the_setting(flags, monkeypatch):
  calls = []
  monkeypatch.setattr(run_main, "run", lambda argv: calls.append(argv) or 0)
  assert command.main(["evaluate", *flags, "--config", "cuhk_pedes", "--workdir=w"]) == 0
  assert command.main(["evaluate", "--workdir", "w"]) == 0
  setting = "--config.pretrained=a b.pth"  # flags of a config must follow its name
  assert calls == [
    ["dgia evaluate", "--mode=evaluate", "--config", "cuhk_pedes", "--workdir=w", setting],
    ["dgia evaluate", "--mode=evaluate", "--workdir", "w"],
  ]


def test_pretrained_without_a_value_ends_in_one_line(capsys):
  assert command.main(["evaluate", "--config", "cuhk_pedes", "--pretrained"]) == 2
  error = capsys.readouterr().err
  assert "--pretrained: expected one argument: give a checkpoint" in error
  assert error.count("\n") == 1


@pytest.mark.parametrize("mode", run_main.REQUIRED)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_flags_and_configs(mode, flag, capsys):
  assert command.main([mode, "--config", "synth_pedes", flag]) == 0
  text = capsys.readouterr().out
  assert text.startswith("Trains or evaluates one run")
  for expected in (
    "--workdir: Working directory;",
    "--topology: ",
    "--pretrained: With `dgia`, short for --config.pretrained",
    "--detect_processes: Join the other processes of the surrounding TPU slice or SLURM step.",
    "configs: cuhk_pedes, custom, ",
  ):
    assert expected in text
