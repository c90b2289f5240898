"""Files are found in every layout that archives unpack to; missing and outside ones are named."""

import os
import shutil
import unicodedata

import pytest

from dgia_jax.data import dataset_files
from dgia_jax.errors import UserError
from tests.helpers import fake_datasets


@pytest.mark.parametrize("name", ["cuhk_pedes", "icfg_pedes", "rstp_reid", "custom"])
def test_exact_layout(tmp_path, name):
  entries = getattr(fake_datasets, name)(tmp_path)
  files = dataset_files.open_dataset(name, source=str(tmp_path))
  assert len(files.paths) == len(entries) and not files.missing()
  assert files.annotations.errors == ()
  assert files.image_folder == str(tmp_path / ("images" if name == "custom" else "imgs"))


@pytest.mark.parametrize("spelling", ["reid_raw.json", "caption_all.json", "captions.json"])
def test_every_known_name_of_the_annotations_is_accepted(tmp_path, spelling):
  fake_datasets.cuhk_pedes(tmp_path)
  (tmp_path / "reid_raw.json").rename(tmp_path / spelling)
  files = dataset_files.open_dataset("cuhk_pedes", source=str(tmp_path))
  assert files.annotations.files == (str(tmp_path / spelling),)


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
  files = dataset_files.open_dataset("custom", annotations=file, images=str(tmp_path / "pictures"))
  assert not files.missing()
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
  files = dataset_files.open_dataset("cuhk_pedes", source=str(tmp_path))
  assert [record.path for record in files.missing()] == [
    "cam_a/1_0.jpg", "CUHK01/3_0.jpg", "CUHK01/3_1.jpg"]  # fmt: skip
  folders = files.missing_folders()
  assert {folder: len(lost) for folder, lost in folders.items()} == {"": 1, "CUHK01": 2}


def test_split_files(tmp_path):
  entries = fake_datasets.custom(tmp_path)
  (tmp_path / "annotations.json").unlink()
  for split in ("train", "test"):
    part = [entry for entry in entries if entry["split"] == split]
    fake_datasets.write_json(
      tmp_path / f"{split}.json", [{**entry, "split": None} for entry in part]
    )
  files = dataset_files.open_dataset("custom", source=str(tmp_path))
  assert [(record.split, record.person) for record in files.annotations.records] == [
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


@pytest.mark.parametrize("name", ["custom", "cuhk_pedes"])
def test_an_unreadable_folder_is_named(tmp_path, monkeypatch, name):
  def listdir(path):
    raise PermissionError(13, "Permission denied", path)

  monkeypatch.setattr(os, "listdir", listdir)
  with pytest.raises(UserError, match=f"{tmp_path} cannot be read .Permission denied"):
    dataset_files.open_dataset(name, source=str(tmp_path))


def test_wrong_annotation_name_lists_what_is_there(tmp_path):
  fake_datasets.rstp_reid(tmp_path)
  (tmp_path / "data_captions.json").rename(tmp_path / "captions.json")
  with pytest.raises(UserError, match=r"no data_captions.json in .* in it: captions.json"):
    dataset_files.open_dataset("rstp_reid", source=str(tmp_path))


OUTSIDE = ("../secret.png", "images/../../secret.png", "..\\secret.png", "linked.png",
           "linked/secret.png", "{absolute}")  # fmt: skip


def _dataset_that_leads_outside(tmp_path, path):
  """A custom dataset whose second entry has this path, with a picture beside the dataset."""
  folder = tmp_path / "dataset"
  entries = fake_datasets.custom(folder)
  secret = tmp_path / "secret.png"
  fake_datasets.write_image(secret)
  (folder / "images" / "linked.png").symlink_to(secret)
  (folder / "images" / "linked").symlink_to(tmp_path)
  entries[1]["img_path"] = path.format(absolute=secret)
  fake_datasets.write_json(folder / "annotations.json", entries)
  return folder


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("with_images", [False, True])
def test_an_image_outside_the_dataset_is_refused_by_name(tmp_path, path, with_images):
  folder = _dataset_that_leads_outside(tmp_path, path)
  options = dict(annotations=str(folder / "annotations.json"), images=str(folder / "images"))
  options = options if with_images else dict(source=str(folder))
  files = dataset_files.open_dataset("custom", **options)
  assert len(files.paths) == len(files.annotations.records) == 3 and all(files.paths)
  (error,) = files.annotations.errors
  assert f"outside {folder}" in error and "--allow_outside" in error
  assert "annotations.json [1]" in error


@pytest.mark.parametrize("path", OUTSIDE)
def test_an_image_outside_the_dataset_can_be_allowed(tmp_path, path):
  folder = _dataset_that_leads_outside(tmp_path, path)
  files = dataset_files.open_dataset("custom", source=str(folder), allow_outside=True)
  assert files.annotations.errors == ()
  assert os.path.realpath(files.paths[1]) == str(tmp_path / "secret.png")


@pytest.mark.parametrize("path", ["/dev/null", "/dev", "../../absent.png"])
def test_allowing_images_outside_allows_files_only(tmp_path, path):
  folder = _dataset_that_leads_outside(tmp_path, path)
  files = dataset_files.open_dataset("custom", source=str(folder), allow_outside=True)
  assert files.annotations.errors == ()
  assert [record.path for record in files.missing()] == [path]


@pytest.mark.parametrize("path", ["/proc/self/mem", "/dev/null", "../../absent.png", "/absent.png"])
def test_paths_that_lead_outside_are_refused_whatever_is_there(tmp_path, path):
  folder = _dataset_that_leads_outside(tmp_path, path)
  (error,) = dataset_files.open_dataset("custom", source=str(folder)).annotations.errors
  assert error.endswith(f"{path})") or f"{path} -> " in error


def test_a_linked_image_folder_must_be_named(tmp_path):
  fake_datasets.custom(tmp_path / "dataset")
  (tmp_path / "dataset" / "images").rename(tmp_path / "disk")
  (tmp_path / "dataset" / "images").symlink_to(tmp_path / "disk")
  source = str(tmp_path / "dataset")
  (error,) = dataset_files.open_dataset("custom", source=source).annotations.errors
  assert f"images is a link; if you trust it: --images {tmp_path / 'disk'}" in error
  for images in ("disk", "dataset/images"):
    files = dataset_files.open_dataset("custom", source=source, images=str(tmp_path / images))
    assert not files.annotations.errors and not files.missing()


def test_a_linked_dataset_folder_is_followed(tmp_path):
  fake_datasets.custom(tmp_path / "disk")
  (tmp_path / "dataset").symlink_to(tmp_path / "disk")
  files = dataset_files.open_dataset("custom", source=str(tmp_path / "dataset"))
  assert not files.annotations.errors and not files.missing()


def test_the_parent_of_the_annotations_is_not_searched(tmp_path):
  folder = tmp_path / "home" / "labels"
  fake_datasets.write_json(folder / "a.json", [
    {"id": 1, "img_path": "private/me.png", "captions": ["a man"], "split": "train"}])  # fmt: skip
  fake_datasets.write_image(tmp_path / "home" / "private" / "me.png")
  assert dataset_files.open_dataset("custom", source=str(folder)).paths == (None,)


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_annotations_must_be_a_regular_file(tmp_path, kind):
  fake_datasets.cuhk_pedes(tmp_path)
  file = tmp_path / "reid_raw.json"
  file.unlink()
  make = dict(fifo=os.mkfifo, folder=os.mkdir, device=lambda path: os.symlink("/dev/zero", path))
  make[kind](file)
  for options in (dict(source=str(tmp_path)), dict(annotations=str(file))):
    with pytest.raises(UserError, match="reid_raw.json is not a regular file"):
      dataset_files.open_dataset("cuhk_pedes", **options)


def test_annotations_without_the_split_name_the_file_that_has_it(tmp_path):
  entries = fake_datasets.cuhk_pedes(tmp_path)
  (tmp_path / "reid_raw.json").unlink()
  for entry in entries:
    del entry["split"]
  fake_datasets.write_json(tmp_path / "caption_all.json", entries)
  with pytest.raises(UserError, match="caption_all.json has no split; the split is in reid_raw"):
    dataset_files.open_dataset("cuhk_pedes", source=str(tmp_path))


def test_the_folder_with_the_missing_images_is_found(tmp_path):
  fake_datasets.custom(tmp_path)
  (tmp_path / "data").mkdir()
  (tmp_path / "images").rename(tmp_path / "data" / "people")
  files = dataset_files.open_dataset("custom", source=str(tmp_path))
  assert len(files.missing()) == 4
  assert files.folder_with_missing() == str(tmp_path / "data" / "people")
