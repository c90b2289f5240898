"""Every dataset is built from a small fake copy, completely or not at all."""

import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from dgia_jax.data import dataset_files, images, pairs, tfds_builder
from dgia_jax.errors import UserError
from tests.helpers import fake_datasets

SIZE = (24, 8)


def _open(name, folder):
  return dataset_files.open_dataset(name, source=str(folder))


def _build(name, folder, data_dir, **options):
  options = {"workers": 2, **options}
  return tfds_builder.build(_open(name, folder), data_dir=str(data_dir), **options)


def _rows(builder, split):
  return list(builder.as_data_source(split))


def _everything_in(folder):
  return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
  ("name", "splits"),
  [
    ("cuhk_pedes", {"train": 10, "val": 2, "test": 2}),
    ("icfg_pedes", {"train": 12, "test": 4}),
    ("rstp_reid", {"train": 15, "val": 5, "test": 5}),
    ("custom", {"train": 2, "test": 2}),
  ],
)
def test_build_and_read(tmp_path, name, splits):
  entries = getattr(fake_datasets, name)(tmp_path / "in")
  builder = _build(name, tmp_path / "in", tmp_path / "out")
  assert builder.name == name
  assert {split: info.num_examples for split, info in builder.info.splits.items()} == splits
  for split in splits:
    wanted = [entry for entry in entries if entry["split"] == split]
    rows = _rows(builder, split)
    paths = [entry.get("file_path") or entry["img_path"] for entry in wanted]
    assert [row["image_path"].decode() for row in rows] == paths
    assert [[c.decode() for c in row["captions"]] for row in rows] == [
      entry["captions"] for entry in wanted]  # fmt: skip
    folder = "images" if name == "custom" else "imgs"
    for row, entry, path in zip(rows, wanted, paths, strict=True):
      with Image.open(tmp_path / "in" / folder / path) as image:
        np.testing.assert_array_equal(row["image"], np.asarray(image.convert("RGB")))
      person = entry["id"] if name != "custom" else int(entry["id"][1:])
      assert row["person_id"] == person
  assert builder.info.metadata["skipped"] == []
  assert builder.info.metadata["identities"] == "known"
  again = pickle.loads(pickle.dumps(builder))
  assert len(_rows(again, "train")) == splits["train"]


def test_ufine6926_takes_the_only_json_there_is(tmp_path):
  rows = [("images/1.jpg", 1, "train"), ("images/2.jpg", 2, "test")]
  for path, _, _ in rows:
    fake_datasets.write_image(tmp_path / "UFine6926" / path)
  fake_datasets.write_json(
    tmp_path / "UFine6926" / "some name.json",
    [dict(file_path=p, id=i, split=s, captions=["long " * 81, "b"]) for p, i, s in rows],
  )
  builder = _build("ufine6926", tmp_path, tmp_path / "out")
  assert {s: i.num_examples for s, i in builder.info.splits.items()} == {"train": 1, "test": 1}


@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
def test_pixels_are_those_of_pillow_from_the_file(tmp_path, resize):
  """To the bit, through build and reading, for JPEG and PNG files, larger and smaller ones."""
  entries = []
  for number, (size, ending) in enumerate([((90, 40), "jpg"), ((20, 6), "jpg"), ((71, 33), "png")]):
    fake_datasets.write_image(tmp_path / "in" / f"{number}.{ending}", number, size)
    entries.append({"id": 1, "img_path": f"{number}.{ending}", "captions": ["a"], "split": "train"})
  fake_datasets.write_json(tmp_path / "in" / "annotations.json", entries)
  builder = _build("custom", tmp_path / "in", tmp_path / "out")
  table = pairs.load_pairs(builder, "train", SIZE, resize)
  pillow = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[resize]
  for row, entry in enumerate(entries):
    with Image.open(tmp_path / "in" / entry["img_path"]) as image:
      expected = np.asarray(image.convert("RGB").resize(SIZE[::-1], pillow))
    np.testing.assert_array_equal(table.images[row], expected)
    np.testing.assert_array_equal(
      images.read_resized(tmp_path / "in" / entry["img_path"], SIZE, resize), expected
    )


def test_files_are_stored_byte_for_byte(tmp_path):
  entries = fake_datasets.custom(tmp_path / "in")
  builder = _build("custom", tmp_path / "in", tmp_path / "out")
  source = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
  train = [entry for entry in entries if entry["split"] == "train"]
  assert train
  for row, entry in zip(source, train, strict=True):
    assert row["image"] == (tmp_path / "in" / "images" / entry["img_path"]).read_bytes()


def test_several_shards_keep_the_order(tmp_path, monkeypatch):
  monkeypatch.setattr(tfds_builder, "_SHARD_IMAGES", 4)
  entries = fake_datasets.rstp_reid(tmp_path / "in")
  builder = _build("rstp_reid", tmp_path / "in", tmp_path / "out")
  assert builder.info.splits["train"].num_shards == 4
  paths = [row["image_path"].decode() for row in _rows(builder, "train")]
  assert paths == [entry["img_path"] for entry in entries[:15]]


def test_whatever_changes_the_content_changes_the_folder(tmp_path):
  fake_datasets.icfg_pedes(tmp_path / "in")
  build = lambda **options: _build(
    "icfg_pedes", tmp_path / "in", tmp_path / "out", **options)  # fmt: skip
  folders = {build(**options).data_dir for options in (
    {}, {"holdout": 1}, {"holdout": 2})}  # fmt: skip
  assert len(folders) == 3
  before = _everything_in(tmp_path / "out")
  assert build().data_dir in folders
  assert _everything_in(tmp_path / "out") == before
  fake_datasets.write_image(tmp_path / "in" / "imgs" / "test" / "0000" / "0000_0.jpg", 9, (80, 30))
  assert build().data_dir not in folders


def test_images_replaced_by_others_of_the_same_size_are_built_again(tmp_path):
  fake_datasets.custom(tmp_path / "in")
  first = _build("custom", tmp_path / "in", tmp_path / "out")
  path = tmp_path / "in" / "images" / "street 0" / "bild_ü0.png"
  content = path.read_bytes()
  other = Image.open(path).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
  other.save(path)
  if len(path.read_bytes()) > len(content):
    content += bytes(len(path.read_bytes()) - len(content))
  path.write_bytes(path.read_bytes().ljust(len(content), b"\0"))
  second = _build("custom", tmp_path / "in", tmp_path / "out")
  assert second.data_dir != first.data_dir
  assert (_rows(second, "train")[0]["image"] == np.asarray(other)).all()


def test_equal_files_elsewhere_are_the_same_build(tmp_path):
  fake_datasets.custom(tmp_path / "in")
  first = _build("custom", tmp_path / "in", tmp_path / "out")
  shutil.copytree(tmp_path / "in", tmp_path / "copy")
  assert _build("custom", tmp_path / "copy", tmp_path / "out").data_dir == first.data_dir


def test_an_unreadable_folder_of_builds_is_named(tmp_path, monkeypatch):
  def listdir(path):
    raise PermissionError(13, "Permission denied", path)

  (tmp_path / "custom").mkdir()
  monkeypatch.setattr(os, "listdir", listdir)
  with pytest.raises(UserError, match=f"{tmp_path}/custom cannot be read .Permission denied"):
    tfds_builder.find_built("custom", data_dir=str(tmp_path), holdout=0)


def test_builds_of_earlier_versions_are_ignored(tmp_path):
  fake_datasets.custom(tmp_path / "in")
  folder = pathlib.Path(_build("custom", tmp_path / "in", tmp_path / "out").data_dir)
  folder.rename(folder.with_name("1.0.0"))
  folder.parent.rename(folder.parent.with_name("384x128-jpeg95-0123abcd"))
  assert tfds_builder.find_built("custom", data_dir=str(tmp_path / "out"), holdout=0) == []


def test_an_image_that_changes_while_it_is_built_stops_the_build(tmp_path, monkeypatch):
  fake_datasets.custom(tmp_path / "in")
  monkeypatch.setattr(images, "read_bytes", lambda path: b"other content")
  with pytest.raises(UserError, match="changed while the dataset was built"):
    _build("custom", tmp_path / "in", tmp_path / "out")
  assert _everything_in(tmp_path / "out") == []


def test_large_images_give_a_warning(tmp_path, caplog):
  entry = {"id": 1, "img_path": "a.jpg", "captions": ["a"], "split": "train"}
  fake_datasets.write_json(tmp_path / "in" / "annotations.json", [entry])
  fake_datasets.write_image(tmp_path / "in" / "a.jpg", size=(1500, 1000))
  _build("custom", tmp_path / "in", tmp_path / "out")
  assert "1.5 megapixels on average" in caplog.text


def test_hold_out_moves_whole_people_of_train(tmp_path):
  fake_datasets.icfg_pedes(tmp_path / "in")
  builder = _build("icfg_pedes", tmp_path / "in", tmp_path / "out", holdout=2)
  people = {split: {int(row["person_id"]) for row in _rows(builder, split)}
            for split in ("train", "val", "test")}  # fmt: skip
  assert people["test"] == {6, 7}
  assert len(people["val"]) == 2 and len(people["train"]) == 4
  assert people["val"] | people["train"] == set(range(6))
  assert builder.info.splits["val"].num_examples == 4


def test_hold_out_never_changes():
  records = tuple(tfds_builder.ImageRecord(f"{n}.jpg", ("a",), n, "train") for n in range(3102))
  held = tfds_builder.holdout_people(records, 310)
  assert len(held) == 310
  assert tfds_builder.holdout_people(records[::-1], 310) == held
  assert tfds_builder.holdout_people(records, 100) < held
  assert sorted(held)[:5] == [15, 44, 46, 76, 87]


def test_hold_out_mistakes(tmp_path):
  fake_datasets.cuhk_pedes(tmp_path / "cuhk")
  with pytest.raises(UserError, match="val split of its own"):
    _build("cuhk_pedes", tmp_path / "cuhk", tmp_path / "out", holdout=1)
  fake_datasets.icfg_pedes(tmp_path / "icfg")
  with pytest.raises(UserError, match="6 train people"):
    _build("icfg_pedes", tmp_path / "icfg", tmp_path / "out", holdout=6)
  assert not (tmp_path / "out").exists()


def test_corrupt_image_stops_the_build_and_leaves_nothing(tmp_path):
  fake_datasets.rstp_reid(tmp_path / "in")
  bad = tmp_path / "in" / "imgs" / "0003_c2_0022.jpg"
  bad.write_bytes(bad.read_bytes()[:300])
  with pytest.raises(UserError, match="0003_c2_0022.jpg") as caught:
    _build("rstp_reid", tmp_path / "in", tmp_path / "out")
  assert "--skip_unreadable" in str(caught.value) and "\n" not in str(caught.value)
  assert _everything_in(tmp_path / "out") == []


def test_skip_unreadable_counts_and_lists(tmp_path):
  fake_datasets.cuhk_pedes(tmp_path / "in")
  (tmp_path / "in" / "imgs" / "cam_a" / "1_0.jpg").write_bytes(b"no image")
  (tmp_path / "in" / "imgs" / "cam_b" / "2_1.jpg").unlink()
  with pytest.raises(UserError, match="1 of 14 images are missing.*cam_b/2_1.jpg"):
    _build("cuhk_pedes", tmp_path / "in", tmp_path / "out")
  builder = _build("cuhk_pedes", tmp_path / "in", tmp_path / "out", skip_unreadable=True)
  assert builder.info.splits["train"].num_examples == 8
  skipped = sorted(builder.info.metadata["skipped"])
  assert len(skipped) == 2
  assert "cam_a/1_0.jpg: not an image" in skipped[0]
  assert "cam_b/2_1.jpg: no such file" in skipped[1]
  # The incomplete build was requested, so later calls accept it.
  assert _build("cuhk_pedes", tmp_path / "in", tmp_path / "out").data_dir == builder.data_dir


@pytest.mark.parametrize("bad", [range(4), range(4, 8), range(12, 15)])
@pytest.mark.parametrize(
  "damage", [pathlib.Path.unlink, lambda path: path.write_bytes(b"no image")]
)
def test_a_whole_shard_can_be_skipped(tmp_path, monkeypatch, bad, damage):
  """The first one, one in the middle, or the short last one."""
  monkeypatch.setattr(tfds_builder, "_SHARD_IMAGES", 4)
  entries = fake_datasets.rstp_reid(tmp_path / "in")[:15]
  for row in bad:
    damage(tmp_path / "in" / "imgs" / entries[row]["img_path"])
  builder = _build("rstp_reid", tmp_path / "in", tmp_path / "out", skip_unreadable=True)
  kept = [entry["img_path"] for row, entry in enumerate(entries) if row not in bad]
  assert [row["image_path"].decode() for row in _rows(builder, "train")] == kept
  assert len(builder.info.metadata["skipped"]) == len(bad)
  table = pairs.load_pairs(builder, "train", SIZE, "bilinear")
  assert len([table.images[row] for row in range(len(kept))]) == len(table.images)


def test_no_readable_image_is_an_error_even_when_skipping(tmp_path):
  entries = fake_datasets.custom(tmp_path / "in")
  for entry in entries:
    (tmp_path / "in" / "images" / entry["img_path"]).write_bytes(b"")
  with pytest.raises(UserError, match="none of 2 images"):
    _build("custom", tmp_path / "in", tmp_path / "out", skip_unreadable=True)
  assert _everything_in(tmp_path / "out") == []


def test_an_image_that_does_not_fit_into_the_memory_is_never_skipped(tmp_path, monkeypatch):
  """Perhaps it only failed because several threads were decoding."""

  def upright_rgb(image):
    raise MemoryError

  fake_datasets.custom(tmp_path / "in")
  monkeypatch.setattr(images, "upright_rgb", upright_rgb)
  with pytest.raises(UserError, match="too large for the memory; decode fewer at once"):
    _build("custom", tmp_path / "in", tmp_path / "out", skip_unreadable=True)
  assert _everything_in(tmp_path / "out") == []


@pytest.mark.parametrize("field", ["split", "file_path"])
def test_faulty_annotation_stops_before_anything_is_written(tmp_path, field):
  entries = fake_datasets.cuhk_pedes(tmp_path / "in")
  del entries[4][field]
  fake_datasets.write_json(tmp_path / "in" / "reid_raw.json", entries)
  with pytest.raises(UserError, match=r"reid_raw.json.*\[4\]"):
    _build("cuhk_pedes", tmp_path / "in", tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_custom_with_awkward_files(tmp_path):
  """All image modes, unusual names, no ids, one entry per caption, as in datasets in the wild."""
  folder, entries = tmp_path / "in", []
  for n, (mode, ending) in enumerate(
    [("L", "jpg"), ("RGBA", "png"), ("P", "png"), ("CMYK", "jpg"), ("1", "png"), ("LA", "png")]
  ):
    path = f"sub {n}/фото\u00e9 {n}.{ending}"
    fake_datasets.write_image(folder / path, n, mode=mode)
    split = "training" if n < 4 else "valid"
    entries += [{"file_path": path.replace("/", "\\"), "caption": f"{c}", "split": split}
                for c in ("ein Mann", "红色外套")]  # fmt: skip
  fake_datasets.write_json(folder / "my.json", entries)
  builder = _build("custom", folder, tmp_path / "out")
  assert {s: i.num_examples for s, i in builder.info.splits.items()} == {"train": 4, "val": 2}
  rows = _rows(builder, "train") + _rows(builder, "val")
  assert len({int(row["person_id"]) for row in rows}) == 6
  assert all([c.decode() for c in row["captions"]] == ["ein Mann", "红色外套"] for row in rows)
  assert rows[5]["image_path"].decode() == "sub 5/фото\u00e9 5.png"
  assert builder.info.metadata["identities"] == "unknown"


def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch):
  fake_datasets.rstp_reid(tmp_path / "in")
  real = images.read_bytes

  def interrupted(path):
    if "0002" in path:
      raise KeyboardInterrupt
    return real(path)

  monkeypatch.setattr(images, "read_bytes", interrupted)
  with pytest.raises(KeyboardInterrupt):
    _build("rstp_reid", tmp_path / "in", tmp_path / "out")
  assert _everything_in(tmp_path / "out") == []
  monkeypatch.undo()
  assert _build("rstp_reid", tmp_path / "in", tmp_path / "out").info.splits.total_num_examples == 25


def test_a_killed_build_is_not_mistaken_for_complete(tmp_path):
  """After SIGKILL no reader finds a dataset, and the next build removes the leftovers and works."""
  fake_datasets.rstp_reid(tmp_path / "in")
  out = tmp_path / "out"
  code = f"""
import time
from dgia_jax.data import dataset_files, images, tfds_builder
real = images.read_bytes
def slow(path):
  if "0003" in path:
    time.sleep(60)
  return real(path)
images.read_bytes = slow
opened = dataset_files.open_dataset("rstp_reid", source={str(tmp_path / "in")!r})
tfds_builder.build(opened, data_dir={str(out)!r}, workers=1)
"""
  process = subprocess.Popen([sys.executable, "-c", code], cwd=os.getcwd())
  try:
    deadline = time.time() + 60
    while time.time() < deadline and not list(out.rglob("*train.array_record*")):
      assert process.poll() is None
      time.sleep(0.05)
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
  left = _everything_in(out)
  assert any("incomplete." in path for path in left)
  search = dict(data_dir=str(out), holdout=0)
  assert tfds_builder.find_built("rstp_reid", **search) == []
  builder = _build("rstp_reid", tmp_path / "in", out)
  assert builder.info.splits["train"].num_examples == 15
  assert not any("incomplete." in path or ".lock" in path for path in _everything_in(out))
  assert tfds_builder.find_built("rstp_reid", **search) == [builder.data_dir]


def test_two_builds_at_once_wait_for_each_other(tmp_path):
  fake_datasets.rstp_reid(tmp_path / "in")
  code = f"""
from dgia_jax.data import dataset_files, tfds_builder
opened = dataset_files.open_dataset("rstp_reid", source={str(tmp_path / "in")!r})
print(tfds_builder.build(opened, data_dir={str(tmp_path / "out")!r}).data_dir)
"""
  runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
          for _ in range(2)]  # fmt: skip
  folders = {run.communicate(timeout=120)[0] for run in runs}
  assert [run.returncode for run in runs] == [0, 0]
  assert len(folders) == 1
  builder = tfds.builder_from_directory(folders.pop().strip())
  assert len(_rows(builder, "train")) == 15
