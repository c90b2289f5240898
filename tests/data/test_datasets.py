"""Datasets by name, from a config or the command line; every mistake ends in one line."""

import os
import shlex
import sys

import pytest

from dgia_jax.data import __main__ as command
from dgia_jax.data import datasets
from dgia_jax.errors import UserError
from tests.helpers import fake_datasets

SIZE = (24, 8)


def _load(name, tmp_path, **options):
  return datasets.load_builder(
    name, data_dir=str(tmp_path / "out"), image_size=SIZE, **options)  # fmt: skip


def _error(call, *args, **kwargs):
  with pytest.raises(UserError) as caught:
    call(*args, **kwargs)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_builds_once_then_reads_without_the_source(tmp_path):
  fake_datasets.cuhk_pedes(tmp_path / "in")
  built = _load("cuhk_pedes", tmp_path, source=str(tmp_path / "in"))
  assert len(built.as_data_source("train")) == 10
  again = _load("cuhk_pedes", tmp_path)
  assert again.data_dir == built.data_dir
  assert again.info.splits["val"].num_examples == 2


def test_absent_dataset_names_the_command(tmp_path):
  message = _error(_load, "icfg_pedes", tmp_path, holdout=7)
  expected = (f"python -m dgia_jax.data prepare icfg_pedes --source FOLDER --data_dir "
              f"{tmp_path / 'out'} --holdout 7")  # fmt: skip
  assert expected in message


def test_missing_source_files_are_named_with_the_command(tmp_path):
  (tmp_path / "in").mkdir()
  message = _error(_load, "rstp_reid", tmp_path, source=str(tmp_path / "in"))
  assert "no data_captions.json" in message
  assert f"prepare rstp_reid --source {tmp_path / 'in'} --data_dir" in message


def test_two_builds_of_different_files_are_ambiguous(tmp_path):
  for n in range(2):
    fake_datasets.custom(tmp_path / f"in{n}")
    fake_datasets.write_image(tmp_path / f"in{n}" / "images" / "street 0" / "bild_ü0.png", n)
    _load("custom", tmp_path, source=str(tmp_path / f"in{n}"))
  message = _error(_load, "custom", tmp_path)
  assert "2 builds" in message and "original-" in message


def test_a_hold_out_is_not_mistaken_for_the_whole(tmp_path):
  fake_datasets.icfg_pedes(tmp_path / "in")
  held = _load("icfg_pedes", tmp_path, source=str(tmp_path / "in"), holdout=2)
  assert "not built" in _error(_load, "icfg_pedes", tmp_path)
  assert _load("icfg_pedes", tmp_path, holdout=2).data_dir == held.data_dir


def test_custom_by_annotations_and_images(tmp_path):
  fake_datasets.custom(tmp_path / "in")
  files = dict(annotations=str(tmp_path / "in" / "annotations.json"),
               images=str(tmp_path / "in" / "images"))  # fmt: skip
  assert len(_load("custom", tmp_path, **files).as_data_source("test")) == 2


def test_images_outside_the_dataset_are_an_option(tmp_path, capsys):
  fake_datasets.custom(tmp_path / "in")
  image = tmp_path / "in" / "images" / "street 0" / "bild_ü0.png"
  image.rename(tmp_path / "outside.png")
  image.symlink_to(tmp_path / "outside.png")
  source = str(tmp_path / "in")
  assert "--allow_outside" in _error(_load, "custom", tmp_path, source=source)
  builder = _load("custom", tmp_path, source=source, allow_outside=True)
  assert builder.info.splits["train"].num_examples == 2
  assert command.main(["check", "custom", "--source", source]) == 1
  assert command.main(["check", "custom", "--source", source, "--allow_outside"]) == 0
  assert "1 (first: annotations.json [0], street 0" in capsys.readouterr().out


def test_mistakes(tmp_path):
  message = _error(_load, "market", tmp_path)
  assert all(name in message for name in datasets.names())
  assert "'colour'" in _error(_load, "custom", tmp_path, colour=3)
  assert "holdout=True" in _error(_load, "icfg_pedes", tmp_path, holdout=True)


@pytest.mark.parametrize(
  "option",
  [
    {"allow_outside": "false"}, {"skip_unreadable": 1}, {"holdout": "ten"}, {"holdout": 0.5},
    {"holdout": None}, {"holdout": -1}, {"workers": "x"}, {"workers": -1},
  ],
)  # fmt: skip
def test_an_option_of_the_wrong_kind_is_refused(tmp_path, option):
  ((name, value),) = option.items()
  assert f"{name}={value!r}: give " in _error(_load, "custom", tmp_path, **option)


def test_the_named_command_works_for_any_path(tmp_path):
  command_line = datasets.prepare_command("custom", "/my data", files={"source": "/a'b c"})
  assert shlex.split(command_line)[4:] == ["custom", "--source", "/a'b c", "--data_dir", "/my data"]


def test_data_dir_that_cannot_be_written(tmp_path):
  fake_datasets.custom(tmp_path / "in")
  (tmp_path / "out").write_text("a file")
  source = str(tmp_path / "in")
  assert "choose another data_dir" in _error(_load, "custom", tmp_path, source=source)
  message = _error(datasets.load_builder, "custom", data_dir="~nobody-here/x", source=source)
  assert message.startswith("data_dir=~nobody-here/x: no home folder is known for ~nobody-here")


def test_folders_whose_names_are_not_utf_8(tmp_path, capsys):
  folder = tmp_path / os.fsdecode(b"\xff")
  fake_datasets.custom(folder)
  builder = _load("custom", tmp_path, source=str(folder))
  assert builder.info.splits["train"].num_examples == 2
  message = _error(datasets.load_builder, "custom", data_dir=str(folder), source=str(folder))
  assert "choose another data_dir" in message
  line = ["prepare", "custom", "--source", str(folder), "--data_dir", str(folder)]
  assert command.main(line) == 2
  assert r"\udcff is not UTF-8" in capsys.readouterr().err


def test_default_data_dir(monkeypatch, tmp_path):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  assert datasets.resolved_data_dir("") == str(tmp_path)
  monkeypatch.delenv("TFDS_DATA_DIR")
  monkeypatch.setenv("HOME", "/home/someone")
  assert datasets.resolved_data_dir("") == "/home/someone/tensorflow_datasets"
  assert datasets.resolved_data_dir("/x") == "/x"


def test_one_dataset_needs_no_other(monkeypatch, tmp_path):
  fake_datasets.custom(tmp_path / "in")
  monkeypatch.setitem(sys.modules, "dgia_jax.data.synth_pedes", None)
  _load("custom", tmp_path, source=str(tmp_path / "in"))


def test_check_command(tmp_path, capsys):
  fake_datasets.rstp_reid(tmp_path)
  assert command.main(["check", "rstp_reid", "--source", str(tmp_path)]) == 0
  out = capsys.readouterr().out
  assert "RSTPReid: check of" in out and "verdict" in out
  (tmp_path / "imgs" / "0000_c1_0022.jpg").write_bytes(b"")
  assert command.main(["check", "rstp_reid", "--source", str(tmp_path)]) == 1
  assert "0000_c1_0022.jpg: the file is empty" in capsys.readouterr().out
  assert command.main(["check", "rstp_reid", "--source", str(tmp_path), "--quick"]) == 0


def test_prepare_command(tmp_path, capsys):
  fake_datasets.rstp_reid(tmp_path / "in")
  bad = tmp_path / "in" / "imgs" / "0000_c1_0022.jpg"
  bad.write_bytes(bad.read_bytes()[:200])
  line = ["prepare", "rstp_reid", "--source", str(tmp_path / "in"), "--data_dir",
          str(tmp_path / "out")]  # fmt: skip
  assert command.main(line) == 2
  error = capsys.readouterr().err.strip()
  assert error.startswith("error: rstp_reid: cannot read image") and str(bad) in error
  assert "\n" not in error
  assert not list((tmp_path / "out").rglob("*"))
  assert command.main([*line, "--skip_unreadable"]) == 0
  out = capsys.readouterr().out
  assert f"skipped {bad}" in out and "1 images could not be read" in out
  assert "rstp_reid: train 14, val 5, test 5 images in" in out
  assert _load("rstp_reid", tmp_path).info.splits["train"].num_examples == 14


@pytest.mark.parametrize(
  ("line", "words"),
  [
    (["check", "market"], "no dataset 'market'"),
    (["check", "custom"], "--source FOLDER"),
    (["check", "synth_pedes"], "nothing to check"),
    (["check", "custom", "--show", "-1"], "'-1' is not a whole number of 0 or more"),
    (["check", "custom", "--colour"], "unrecognized arguments: --colour; see python -m"),
    (["check", "cuhk_pedes", "--source", "nowhere"], "no folder"),
    (["prepare", "custom", "--source", "{in}", "--image_size", "big"], "--image_size big"),
    (["prepare", "custom", "--source", "{in}", "--image_size", "0x8"], "--image_size 0x8"),
    (["prepare", "custom", "--source", "{in}", "--image_size", "24x8"], "stored as they are"),
  ],
)
def test_command_line_mistakes(tmp_path, capsys, line, words):
  fake_datasets.custom(tmp_path / "in")
  line = [word.replace("{in}", str(tmp_path / "in")) for word in line]
  assert command.main(line) == 2
  captured = capsys.readouterr()
  assert words in captured.err and len(captured.err.strip().splitlines()) == 1
  assert "Traceback" not in captured.err


def test_synth_pedes_is_drawn_by_name(tmp_path, capfd):
  options = dict(train_people=2, val_people=1, test_people=0, images_per_person=2)
  builder = _load("synth_pedes", tmp_path, **options)
  assert builder.as_data_source("train")[0]["image"].shape == (*SIZE, 3)
  assert {split: info.num_examples for split, info in builder.info.splits.items()} == {
    "train": 4,
    "val": 2,
  }
  assert "Downloading" not in capfd.readouterr().out
  assert _load("synth_pedes", tmp_path, **options).data_dir == builder.data_dir


def test_built_pairs_can_be_loaded(tmp_path):
  from dgia_jax.data import pairs

  fake_datasets.rstp_reid(tmp_path / "in")
  builder = _load("rstp_reid", tmp_path, source=str(tmp_path / "in"))
  table = pairs.load_pairs(builder, "train", SIZE, "bilinear")
  assert (table.num_images, table.num_pairs) == (15, 30)
  assert table.captions[2] == fake_datasets.caption(0, 1)
  assert table.images[14].shape == (*SIZE, 3)
