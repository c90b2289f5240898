"""The command line of `experiments.run`."""

import dataclasses
import errno
import os
import shlex
import subprocess
import sys

import pytest

from dgia_jax import files
from experiments import run
from experiments.paper import launch, runs, tables
from tests.helpers import fabricated

BEYOND = ("strict_mining", "gates", "ideas", "loss_weights")  # not in the paper
WARM = ("--variant", "scratch", "--schedule", "warm")  # each seed trains its own start first


def planned(capsys: pytest.CaptureFixture, *arguments: str) -> list[list[str]]:
  """The commands printed by a dry run, split as in a shell, without those of the starts."""
  assert run.main([*arguments, "--dry_run"]) == 0
  commands = [shlex.split(line, comments=True) for line in capsys.readouterr().out.splitlines()]
  return [command for command in commands if command and "/start." not in command[4]]


def test_a_dry_run_prints_one_command_for_each_missing_run(tmp_path, capsys):
  arguments = ("modules", "--workdir", str(tmp_path / "a b"), "--seeds", "0,1")
  commands = planned(capsys, *arguments)
  assert len(commands) == 10
  assert all(command[:3] == ["python", "-m", "dgia_jax.main"] for command in commands)
  assert len({command[4] for command in commands}) == 10
  assert all(command[4].startswith(f"--workdir={tmp_path}/a b/runs/") for command in commands)
  seeds = [command[-1] for command in commands]
  assert seeds == ["--config.seed=0"] * 5 + ["--config.seed=1"] * 5  # complete tables first


def test_the_starts_come_first(tmp_path, capsys):
  arguments = ["modules", "--workdir", str(tmp_path), "--seeds", "0,1", *WARM]
  assert run.main([*arguments, "--dry_run"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line for line in lines if line.startswith("#")] == ["# first these:", "# then these:"]
  first = lines[1 : lines.index("# then these:")]
  assert len(first) == 2 and all("/start." in line and "pretrained" not in line for line in first)
  folders = [line.split("--workdir=")[1].split()[0] for line in first]
  rest = lines[lines.index("# then these:") + 1 :]
  for seed, folder in enumerate(folders):
    assert sum(f"--config.pretrained={folder} " in line for line in rest) == 5, seed


def test_a_finished_run_is_not_trained_again(tmp_path, capsys):
  options = runs.Options(tables.DATASETS["synth_pedes"], tmp_path)
  finished = runs.make_run(options, tables.EXPERIMENTS["main"].settings[0], 0)
  fabricated.finish(finished, last=20.0)
  arguments = ("--workdir", str(tmp_path))
  assert planned(capsys, "main", *arguments) == []
  assert len(planned(capsys, "modules", *arguments)) == 4
  assert len(planned(capsys, "mask_ratio", *arguments)) == 8


@pytest.mark.parametrize(
  "dataset, variant",
  [("cuhk_pedes", "strong"), ("icfg_pedes", "plus"), ("synth_pedes", "plus"),
   ("custom", "mini_plus")],
)  # fmt: skip
def test_settings_that_a_variant_excludes_are_left_out(tmp_path, capsys, dataset, variant):
  arguments = ("--workdir", str(tmp_path), "--dataset", dataset, "--variant", variant)
  (command,) = planned(capsys, "main", *arguments)
  assert "/DGIA." in command[4]
  commands = planned(capsys, "gates", *arguments)  # gates need each pair's own caption
  assert [command[4].split("/")[-1].split(".")[0] for command in commands] == ["DGIA", "half-rate"]
  assert run.main(["all", *arguments, "--dry_run"]) == 0
  lines = [line for line in capsys.readouterr().err.splitlines() if "not applicable" in line]
  assert [line.split(":")[0] for line in lines] == ["global", "strict_mining", "gates", "ideas"]
  assert "gate-pair, gate-rank, gate-neighbours, gate-running (config.caption_ex" in lines[2]


def test_a_dry_run_is_read_by_xargs_and_a_shell(tmp_path, capsys, monkeypatch):
  arguments = ["gates", "--workdir", str(tmp_path / "it's a"), "--variant", "plus", *WARM[2:]]
  commands = planned(capsys, *arguments)
  assert run.main([*arguments, "--dry_run"]) == 0
  printed = capsys.readouterr().out
  (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s|" python "$@"; echo\n')
  (tmp_path / "python").chmod(0o755)
  monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
  done = subprocess.run(
    """tr '\\n' '\\0' | xargs -0 -I CMD sh -c CMD""", shell=True, input=printed,
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  seen = [line.split("|")[:-1] for line in done.stdout.splitlines()]
  assert [command for command in seen if "/start." not in command[4]] == commands != []


def test_a_report_names_the_settings_that_are_left_out(tmp_path):
  arguments = ("--workdir", str(tmp_path), "--variant", "plus", "--report_only")
  assert run.main(["gates", *arguments]) == 0
  (text,) = (path.read_text() for path in tmp_path.rglob("gates.md"))
  assert "\nSettings that are not applicable with these options: gate-pair, gate-rank," in text
  assert "| gate-pair |" not in text and "| half-rate |" in text
  assert run.main(["modules", *arguments]) == 0
  (text,) = (path.read_text() for path in tmp_path.rglob("modules.md"))
  changed = "loss.weights.local=1.0, local_association.modality=both"
  assert f"| B+LRC+GSRC-FR+IASC-CL | with both and consistency: DGIA | {changed} | 0 of 1" in text
  assert "| B | contrastive loss only | loss.weights.global=0.0, loss.weights.consist" in text


def test_an_experiment_without_any_applicable_setting_is_an_error(tmp_path, capsys, monkeypatch):
  gates = tables.EXPERIMENTS["gates"]
  excluded = dataclasses.replace(gates, settings=gates.settings[1:3])
  experiments = {"main": tables.EXPERIMENTS["main"], "gates": excluded}
  monkeypatch.setattr(tables, "EXPERIMENTS", experiments)
  arguments = ["--workdir", str(tmp_path), "--variant", "plus", "--set", "loss.epsilon=1e-5"]
  assert run.main(["gates", *arguments, "--dry_run"]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: gates: not applicable with these options: gate-pair, gate-rank (")
  assert len(planned(capsys, "all", *arguments)) == 1


def test_all_trains_shared_runs_once(tmp_path, capsys):
  commands = planned(capsys, "all", "--workdir", str(tmp_path))
  # Settings of Tables 4-6 and Figure 4, eight other mask ratios, three reference runs, and the
  # ideas beyond the paper.
  beyond = sum(len(tables.EXPERIMENTS[name].settings) - 1 for name in BEYOND)
  assert len(commands) == 9 + 8 + 3 + beyond


def test_shards_partition_the_runs(tmp_path, capsys):
  whole = planned(capsys, "all", "--workdir", str(tmp_path), "--seeds", "0,1,2")
  parts = [
    planned(capsys, "all", "--workdir", str(tmp_path), "--seeds", "0,1,2", "--shard", f"{i}/4")
    for i in range(1, 5)
  ]
  assert sorted(sum(parts, [])) == sorted(whole)
  assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_only_trains_the_named_settings(tmp_path, capsys):
  commands = planned(capsys, "all", "--workdir", str(tmp_path), "--only", "B,BFE")
  assert [command[4].split("/")[-1].split(".")[0] for command in commands] == ["B", "B+LRC"]


def test_set_variant_schedule_and_source_reach_the_command(tmp_path, capsys):
  (command,) = planned(
    capsys, "main", "--workdir", str(tmp_path), "--variant", "small", "--set", "batch_size=32",
    "--source", "synth_pedes=some where",
  )  # fmt: skip
  assert "--config=configs/synth_pedes.py:small" in command
  assert "--config.batch_size=32" in command
  assert "--config.dataset.source=some where" in command
  assert not [word for word in command if "num_epochs" in word]  # a variant has its own
  # The built-in dataset has no files; `--source synth_pedes` only adds it as a test dataset.
  (command,) = planned(capsys, "main", "--workdir", str(tmp_path), "--source", "synth_pedes")
  assert not [word for word in command if "dataset.source" in word]
  (command,) = planned(capsys, "main", "--workdir", str(tmp_path), *WARM)
  assert f"--config.num_epochs={tables.WARM.fields['num_epochs']}" in command
  (command,) = planned(capsys, "main", "--workdir", str(tmp_path), "--schedule", "config")
  assert not [word for word in command if "num_epochs" in word]


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["nonsense"], "experiment nonsense: unknown; choose one of main, modules"),
    (["main", "--dataset", "flickr"], "--dataset flickr"),
    (["main", "--seeds", "a"], "--seeds a"),
    (["main", "--jobs", "0"], "--jobs 0"),
    (["main", "--protocol", "best"], "--protocol best"),
    (["main", "--split", "val", "--protocol", "val"], "--split val"),
    (["main", "--schedule", "long"], "--schedule long"),
    (["main", "--variant", "huge"], "no variant 'huge'"),
    (["main", "--shard", "5/4"], "--shard 5/4"),
    (["main", "--only", "C"], "--only C: unknown setting; choose among DGIA"),
    (["main", "--source", "flickr=x"], "--source flickr"),
    (["main", "--source", "custom"], "--source custom"),
    (["main", "--source", "custom:tiny"], "--source custom:tiny: give DATASET=FOLDER"),
    (["main", "--source", "custom:huge=x"], "no variant 'huge'"),
    (["main", "--set", "batch_size=0"], "config.batch_size=0"),
    (["main", "--set", "no.such=1"], "--set no.such=1"),
    (["main", "--workdir", "gs://bucket/paper"], "--workdir=gs://bucket/paper: remote paths"),
  ],
)
def test_mistakes_end_in_one_line_and_code_2(tmp_path, capsys, monkeypatch, arguments, message):
  monkeypatch.chdir(tmp_path)
  assert run.main(["--workdir", str(tmp_path), *arguments, "--dry_run"]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and message in error and error.count("\n") == 1
  assert list(tmp_path.iterdir()) == []


def test_a_damaged_run_folder_is_one_line(tmp_path, capsys):
  options = runs.Options(tables.DATASETS["synth_pedes"], tmp_path)
  finished = runs.make_run(options, tables.EXPERIMENTS["main"].settings[0], 0)
  fabricated.finish(finished, last=20.0)
  (finished.folder / "results.json").write_text('{"last": 3}')
  assert run.main(["main", "--workdir", str(tmp_path), "--report_only"]) == 2
  error = capsys.readouterr().err
  assert str(finished.folder) in error and error.count("\n") == 1


@pytest.mark.parametrize(
  "missing, arguments, message",
  [
    (["matplotlib"], ["main"], "the reports need matplotlib: pip"),
    (["matplotlib"], ["main", "--report_only"], "the reports need matplotlib: pip"),
    (["sklearn"], ["tsne"], "the reports need scikit-learn: pip"),
    (["matplotlib", "sklearn"], ["all"], "the reports need matplotlib and scikit-learn: pip"),
  ],
)
def test_missing_packages_are_named_before_training(
  tmp_path, capsys, monkeypatch, missing, arguments, message
):
  monkeypatch.setattr(launch, "train_with_starts", lambda *_: pytest.fail("it has trained"))
  for module in missing:
    monkeypatch.setitem(sys.modules, module, None)
  assert run.main([*arguments, "--workdir", str(tmp_path)]) == 2
  error = capsys.readouterr().err
  assert message in error and 'pip install -e ".[experiments]"' in error
  assert error.count("\n") == 1
  assert run.main([*arguments[:1], "--workdir", str(tmp_path), "--dry_run"]) == 0


def test_a_workdir_in_the_home_folder(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (command,) = planned(capsys, "main", "--workdir", "~/paper")
  assert command[4].startswith(f"--workdir={tmp_path}/paper/runs/")


@pytest.mark.parametrize("report_only", [[], ["--report_only"]])
@pytest.mark.parametrize("place", ["file", "file/below", "/proc/no/such"])
def test_a_workdir_that_cannot_be_written_is_one_line(tmp_path, capsys, place, report_only):
  (tmp_path / "file").write_text("mine")
  workdir = str(tmp_path / place)  # an absolute `place` stays as it is
  assert run.main(["main", "--workdir", workdir, *report_only]) == 2
  error = capsys.readouterr().err
  assert f"--workdir {workdir}: cannot be written" in error and error.count("\n") == 1
  assert "delete" not in error and (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_while_the_report_is_written_is_one_line(tmp_path, capsys, monkeypatch):
  def write_text(path, text):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(files, "write_text", write_text)
  assert run.main(["main", "--workdir", str(tmp_path), "--report_only"]) == 2
  error = capsys.readouterr().err
  assert f"--workdir {tmp_path}: cannot be written" in error and error.count("\n") == 1


def test_errors_elsewhere_are_bugs_and_keep_their_traceback(tmp_path, monkeypatch):
  def write_text(path, text):
    raise FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere")

  monkeypatch.setattr(files, "write_text", write_text)
  with pytest.raises(FileNotFoundError):
    run.main(["main", "--workdir", str(tmp_path), "--report_only"])


TINY = [
  "dataset.options.train_people=8", "dataset.options.val_people=3",
  "dataset.options.test_people=3", "batch_size=8", "eval.batch_size=8",
]  # fmt: skip


@pytest.mark.slow
def test_one_command_trains_measures_and_reports(tmp_path, capsys, monkeypatch):
  """Trains two tiny runs, measures one, and reuses both."""
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
  monkeypatch.setenv("XLA_FLAGS", "")
  sets = [word for field in TINY for word in ("--set", field)]
  arguments = ["--variant", "small", "--workdir", str(tmp_path), "--jobs", "2", *sets]
  assert run.main(["modules", *arguments, "--only", "B,B+LRC+GSRC-FR+IASC-CL"]) == 0
  out = capsys.readouterr().out
  assert out.count(": started") == out.count(": finished") == 2
  (folder,) = (tmp_path / "report").iterdir()
  text = (folder / "modules.md").read_text()
  assert "| B+LRC | R@1 | – | not run |" in text
  assert "| B | R@1 | – | not run |" not in text
  for name in ("masked_queries", "relation_accuracy", "complexity", "attention", "cross_dataset"):
    assert run.main([name, *arguments]) == 0
    assert (folder / f"{name}.png").exists()
  assert ": started" not in capsys.readouterr().out
