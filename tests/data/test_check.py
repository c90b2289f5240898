"""Every known fault of a dataset is in the report, and a dataset without faults is called fine."""

import dataclasses
import os
import pathlib
import shutil

import pytest

from dgia_jax.data import catalog, check, dataset_files
from dgia_jax.data.catalog import Counts, Release
from tests.helpers import fake_datasets


def _check(name, folder, images=None, **options):
  files = dataset_files.open_dataset(name, source=str(folder), images=images and str(images))
  return check.check(files, **options)


def _with_releases(monkeypatch, name, *releases):
  layout = dataclasses.replace(catalog.LAYOUTS[name], releases=releases)
  monkeypatch.setitem(catalog.LAYOUTS, name, layout)


def _edit(folder, name, change):
  entries = getattr(fake_datasets, name)(folder)
  change(entries)
  file = next(folder.glob("*.json"))
  fake_datasets.write_json(file, entries)


RSTP = Release("published", {"train": Counts(3, 15, 30), "val": Counts(1, 5, 10),
                             "test": Counts(1, 5, 10)})  # fmt: skip


def test_a_dataset_of_the_published_sizes_is_fine(tmp_path, monkeypatch):
  fake_datasets.rstp_reid(tmp_path)
  _with_releases(monkeypatch, "rstp_reid", RSTP)
  report = _check("rstp_reid", tmp_path)
  assert report.errors == [] and report.notes == [], report.text
  assert "15 ok" in report.text and "25 decoded" in report.text
  assert report.lines[-1].strip() == "fine: can be built; 0 note(s)"
  assert max(map(len, report.lines)) <= 160 and len(report.lines) < 40


def test_other_sizes_are_noted(tmp_path, monkeypatch):
  fake_datasets.rstp_reid(tmp_path)
  report = _check("rstp_reid", tmp_path, quick=True)
  assert report.errors == []
  assert any("differ from every known release" in note for note in report.notes)
  assert "3 (not 3701)" in report.text


def test_early_release_is_recognised(tmp_path, monkeypatch):
  fake_datasets.rstp_reid(tmp_path)
  published = Release("published", {"train": Counts(2, 10, 20), "val": Counts(2, 10, 20),
                                    "test": Counts(1, 5, 10)})  # fmt: skip
  _with_releases(monkeypatch, "rstp_reid", published,
                 dataclasses.replace(RSTP, name="early release"))  # fmt: skip
  report = _check("rstp_reid", tmp_path, quick=True)
  assert any("'early release'" in note and "train 2, val 2, test 1" in note
             for note in report.notes)  # fmt: skip


def test_early_release_differs_from_the_published_one():
  published, early = catalog.LAYOUTS["rstp_reid"].releases
  assert check._difference(dict(early.splits), early) == 0
  assert check._difference(dict(early.splits), published) > 0


def test_missing_folders_and_their_cost(tmp_path):
  fake_datasets.cuhk_pedes(tmp_path)
  shutil.rmtree(tmp_path / "imgs" / "CUHK01")
  shutil.rmtree(tmp_path / "imgs" / "test_query")
  (tmp_path / "imgs" / "cam_a" / "1_1.jpg").unlink()
  report = _check("cuhk_pedes", tmp_path)
  assert "missing folders: 2, 4 images, 8 pairs lost" in report.errors
  for folder in ("CUHK01", "test_query"):
    assert f"{folder}: 2 images, 4 pairs lost" in report.text
  assert "missing files in folders that exist: 1 images, 2 pairs lost" in report.errors
  assert "cam_a/1_1.jpg" in report.text and "9 of 14 files found" in report.text
  assert "2 error(s)" in report.lines[-1]


def test_unreadable_images_are_listed_by_path(tmp_path):
  fake_datasets.rstp_reid(tmp_path)
  for n in (1, 3):
    (tmp_path / "imgs" / f"000{n}_c0_0022.jpg").write_bytes(b"GIF89a")
  report = _check("rstp_reid", tmp_path)
  assert report.errors == ["unreadable: 2 images, 4 pairs lost"]
  assert "0001_c0_0022.jpg: " in report.text and "0003_c0_0022.jpg: " in report.text
  assert "... and 1 more" in _check("rstp_reid", tmp_path, show=1).text
  quick = _check("rstp_reid", tmp_path, quick=True)
  assert quick.errors == [] and "not decoded" in quick.text


def test_id_base(tmp_path):
  def shift(entries):
    for entry in entries:
      entry["id"] -= 1

  _edit(tmp_path, "cuhk_pedes", shift)
  assert any("ids start at 0, in the published files at 1" in note
             for note in _check("cuhk_pedes", tmp_path).notes)  # fmt: skip


def test_no_val_split_and_shared_people(tmp_path):
  fake_datasets.icfg_pedes(tmp_path / "icfg")
  report = _check("icfg_pedes", tmp_path / "icfg")
  assert any("no val split" in note and "--holdout" in note for note in report.notes)
  _edit(tmp_path / "shared", "icfg_pedes", lambda entries: entries[0].update(split="test"))
  notes = _check("icfg_pedes", tmp_path / "shared").notes
  assert any("1 people are in more than one split" in note for note in notes)


def test_missing_splits_are_noted(tmp_path):
  _edit(tmp_path, "custom", lambda entries: [e.update(split="val") for e in entries])
  notes = "; ".join(_check("custom", tmp_path).notes)
  assert "no train split" in notes and "no test split" in notes


def test_captions(tmp_path):
  def change(entries):
    entries[0]["captions"] = ["A man in red.", "wears <b>black</b> {x};"]
    entries[5]["captions"] = ["a man in  red.", "女人 in red with a bag"]
    entries[10]["captions"] = ["tall", "word " * 100]
    entries[11]["captions"] = ["", "he walks his dog"]

  _edit(tmp_path, "rstp_reid", change)
  report = _check("rstp_reid", tmp_path)
  notes = "\n".join(report.notes)
  assert "blank captions left out: 1" in notes
  assert "1 captions are used for several people, by 2 pairs" in notes
  assert "2 people: 'a man in red.'" in report.text
  assert "1 captions longer than about 77 tokens" in notes
  assert "1 captions shorter than 3 words" in notes
  assert "1 captions with letters that are not Latin" in notes
  assert "1 captions with characters that look like code" in notes
  assert report.errors == []


def test_equal_examples_are_shown_once(tmp_path):
  texts = [*["a man"] * 3, "tall", *["in red"] * 2, "a boy"]
  _edit(tmp_path, "custom", lambda entries: entries[0].update(captions=texts))
  report = _check("custom", tmp_path, show=2)
  assert "7 captions shorter than 3 words" in report.notes
  start = next(i for i, line in enumerate(report.lines) if "7 captions shorter" in line)
  shown = [line.strip() for line in report.lines[start + 1 : start + 4]]
  assert shown[:2] == ["'a man' (3 times)", "'in red' (2 times)"]
  assert shown[2] == "... and 2 more (--show 4)"


@pytest.mark.parametrize("text", ["a man with a naïve look, 1.80m tall", "it's a T-shirt & jeans"])
def test_ordinary_captions_give_no_note(tmp_path, text):
  _edit(tmp_path, "custom", lambda entries: entries[0].update(captions=[text]))
  assert not any("captions" in note for note in _check("custom", tmp_path).notes)


def test_annotation_errors_are_all_in_the_report(tmp_path):
  def change(entries):
    del entries[0]["split"]
    entries[1]["id"] = [3]
    entries[3]["split"] = "validation"

  _edit(tmp_path, "custom", change)
  report = _check("custom", tmp_path)
  assert len(report.errors) == 2
  assert any("read as 'val'" in note for note in report.notes)


def test_unknown_ids_unused_files_and_modes(tmp_path):
  def change(entries):
    for entry in entries:
      del entry["id"]

  _edit(tmp_path, "custom", change)
  fake_datasets.write_image(tmp_path / "images" / "extra.png", mode="L")
  fake_datasets.write_image(tmp_path / "images" / "street 0" / "bild_ü0.png", mode="RGBA")
  fake_datasets.write_image(tmp_path / "images" / "street 1" / "bild_ü1.png", size=(9, 12))
  report = _check("custom", tmp_path)
  assert any("identities are unusable" in note for note in report.notes)
  assert any("1 image files that no entry names" in note for note in report.notes)
  assert any("1 images under 16 pixels" in note for note in report.notes)
  assert "RGB 3, RGBA 1" in report.text and "height 9 to 40" in report.text


@pytest.mark.parametrize(
  ("change", "note"),
  [
    (lambda n, entry: entry.update(id=-1), "all images have the id -1, so identities are unusable"),
    (lambda n, entry: entry.update(id=5), "all images have the id 5, so identities are unusable"),
    (lambda n, entry: entry.update(id=-1 if n < 2 else n), "all train images have the id -1, so"),
    (lambda n, entry: entry.update(id=n), "no two train images have the same id, so"),
    (lambda n, entry: entry.pop("id") if n < 2 else None, "no two train images have the same id"),
    (lambda n, entry: entry.pop("id"), "no entry has an 'id', so identities are unusable"),
  ],
)
def test_unusable_identities_are_noted(tmp_path, change, note):
  _edit(tmp_path, "custom", lambda entries: [change(n, e) for n, e in enumerate(entries)])
  notes = _check("custom", tmp_path, quick=True).notes
  assert any(text.startswith(note) and "precision" in text for text in notes), notes


def test_shared_captions_are_not_noted_without_identities(tmp_path):
  def change(entries):
    for entry in entries:
      entry["captions"] = ["a man in a red coat"]

  _edit(tmp_path, "custom", change)
  assert "1 captions are used for several people" in _check("custom", tmp_path).text
  _edit(tmp_path, "custom", lambda entries: (change(entries), [e.pop("id") for e in entries]))
  assert "several people" not in _check("custom", tmp_path).text


@pytest.mark.parametrize("text", ["['a man', 'in red']", ' ["a man in red"] '])
def test_a_list_written_as_text_is_noted(tmp_path, text):
  _edit(tmp_path, "custom", lambda entries: entries[0].update(captions=text))
  notes = _check("custom", tmp_path).notes
  assert any("1 captions that are a list written as text" in note for note in notes)


def test_many_missing_folders_are_one_error_with_its_mend(tmp_path):
  entries = fake_datasets.custom(tmp_path)
  (tmp_path / "images").rename(tmp_path / "people")
  report = _check("custom", tmp_path)
  assert report.errors == [
    f"missing folders: {len(entries)}, 4 images, 4 pairs lost; they are in {tmp_path / 'people'}: "
    f"give --images {tmp_path / 'people'}"
  ]
  assert not _check("custom", tmp_path, images=tmp_path / "people").errors


def test_the_page_holds_no_control_characters(tmp_path):
  folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b")
  fake_datasets.custom(pathlib.Path(folder))
  fake_datasets.write_image(pathlib.Path(folder, "images", "unused\udcff.png"))
  _edit(pathlib.Path(folder), "custom", lambda entries: entries[0].update(
    captions=["\x1b[31mred\x1b[0m"], img_path="\x1b[2J.png"))  # fmt: skip
  report = _check("custom", folder)
  assert all(line.isprintable() for line in report.lines)
  assert r"\x1b[2J.png" in report.text and r"unused\udcff.png" in report.text
