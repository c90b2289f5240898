"""Files are found in whatever way an archive was unpacked, and the missing ones are counted."""

import shutil
import unicodedata

import pytest

from dgia_jax.data import dataset_files
from dgia_jax.errors import UserError
from tests.helpers import fake_datasets


@pytest.mark.parametrize("name", ["cuhk_pedes", "icfg_pedes", "rstp_reid", "custom"])
def test_exact_layout(tmp_path, name):
  entries = getattr(fake_datasets, name)(tmp_path)
  found = dataset_files.open_dataset(name, source=str(tmp_path))
  assert len(found.paths) == len(entries) and not found.missing()
  assert found.annotations.errors == ()
  assert found.image_folder == str(tmp_path / ("images" if name == "custom" else "imgs"))


@pytest.mark.parametrize("spelling", ["reid_raw.json", "caption_all.json", "captions.json"])
def test_other_names_of_the_annotations(tmp_path, spelling):
  fake_datasets.cuhk_pedes(tmp_path)
  (tmp_path / "reid_raw.json").rename(tmp_path / spelling)
  found = dataset_files.open_dataset("cuhk_pedes", source=str(tmp_path))
  assert found.annotations.files == (str(tmp_path / spelling),)


def test_parent_folder_and_annotations_folder(tmp_path):
  folder = tmp_path / "ICFG-PEDES"
  fake_datasets.icfg_pedes(folder)
  assert not dataset_files.open_dataset("icfg_pedes", source=str(tmp_path)).missing()
  (folder / "annotations").mkdir()
  (folder / "ICFG_PEDES.json").rename(folder / "annotations" / "ICFG-PEDES.json")
  assert not dataset_files.open_dataset("icfg_pedes", source=str(tmp_path)).missing()
  assert not dataset_files.open_dataset("icfg_pedes", source=str(folder)).missing()


def test_annotations_and_images_in_different_places(tmp_path):
  fake_datasets.custom(tmp_path / "a")
  (tmp_path / "a" / "images").rename(tmp_path / "pictures")
  file = str(tmp_path / "a" / "annotations.json")
  found = dataset_files.open_dataset("custom", annotations=file, images=str(tmp_path / "pictures"))
  assert not found.missing()
  assert len(dataset_files.open_dataset("custom", annotations=file).missing()) == 4
  assert not dataset_files.open_dataset(
    "custom", source=file, images=str(tmp_path / "pictures")).missing()  # fmt: skip


@pytest.mark.parametrize("absolute", [True, False])
def test_absolute_paths_and_paths_with_the_folder_name(tmp_path, absolute):
  entries = fake_datasets.custom(tmp_path)
  for entry in entries:
    path = f"images/{entry['img_path']}"
    entry["img_path"] = str(tmp_path / path) if absolute else path.replace("/", "\\")
  fake_datasets.write_json(tmp_path / "annotations.json", entries)
  assert not dataset_files.open_dataset("custom", source=str(tmp_path)).missing()
  files = dict(annotations=str(tmp_path / "annotations.json"), images=str(tmp_path / "images"))
  assert not dataset_files.open_dataset("custom", **files).missing()


def test_decomposed_file_names(tmp_path):
  entries = fake_datasets.custom(tmp_path)
  for entry in entries:
    entry["img_path"] = unicodedata.normalize("NFD", entry["img_path"])
  fake_datasets.write_json(tmp_path / "annotations.json", entries)
  assert not dataset_files.open_dataset("custom", source=str(tmp_path)).missing()


def test_missing_folders_and_files(tmp_path):
  fake_datasets.cuhk_pedes(tmp_path)
  shutil.rmtree(tmp_path / "imgs" / "CUHK01")
  (tmp_path / "imgs" / "cam_a" / "1_0.jpg").unlink()
  found = dataset_files.open_dataset("cuhk_pedes", source=str(tmp_path))
  assert [record.path for record in found.missing()] == [
    "cam_a/1_0.jpg", "CUHK01/3_0.jpg", "CUHK01/3_1.jpg"]  # fmt: skip
  folders = found.missing_folders()
  assert {folder: len(lost) for folder, lost in folders.items()} == {"": 1, "CUHK01": 2}


def test_split_files(tmp_path):
  entries = fake_datasets.custom(tmp_path)
  (tmp_path / "annotations.json").unlink()
  for split in ("train", "test"):
    part = [entry for entry in entries if entry["split"] == split]
    fake_datasets.write_json(
      tmp_path / f"{split}.json", [{**entry, "split": None} for entry in part]
    )
  found = dataset_files.open_dataset("custom", source=str(tmp_path))
  assert [(record.split, record.person) for record in found.annotations.records] == [
    ("test", 2), ("test", 3), ("train", 0), ("train", 1)]  # fmt: skip


@pytest.mark.parametrize(
  ("kwargs", "words"),
  [
    (dict(), "--source FOLDER"),
    (dict(source="nowhere"), "no folder"),
    (dict(annotations="nowhere.json"), "no file"),
    (dict(source=".", images="nowhere"), "no folder"),
    (dict(source="empty"), "no JSON file in"),
    (dict(source="two"), "2 JSON files in"),
  ],
)
def test_mistakes_are_named(tmp_path, monkeypatch, kwargs, words):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "empty").mkdir()
  for name in ("a", "b"):
    fake_datasets.write_json(tmp_path / "two" / f"{name}.json", [])
  with pytest.raises(UserError, match="custom") as caught:
    dataset_files.open_dataset("custom", **kwargs)
  assert words in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_annotation_name_lists_what_is_there(tmp_path):
  fake_datasets.rstp_reid(tmp_path)
  (tmp_path / "data_captions.json").rename(tmp_path / "captions.json")
  with pytest.raises(UserError, match=r"no data_captions.json in .* in it: captions.json"):
    dataset_files.open_dataset("rstp_reid", source=str(tmp_path))
