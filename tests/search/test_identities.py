"""Correct results are known if the query is a caption or an image of the dataset."""

import json
import shutil

import pytest

from dgia_jax.errors import UserError
from dgia_jax.search import identities, index_files
from dgia_jax.search.identities import Identities
from tests.helpers import known_run as known_run_lib


@pytest.fixture
def annotations(image_folder, tmp_path):
  return known_run_lib.write_annotations(tmp_path / "annotations.json", image_folder)


@pytest.fixture
def known(annotations, image_folder):
  return Identities(identities.read_annotations(str(annotations), image_folder), image_folder)


def test_results_are_correct_if_they_show_the_person_of_the_query(known, image_folder):
  path = lambda number: image_folder / ("a" if number % 2 else "b/c") / f"{number}.png"
  results = [(path(number),) for number in (0, 3, 4, 9)]
  of_person_0 = [True, True, False, True]
  assert known.correct(["person 3 wears red."], [], results) == of_person_0
  assert known.correct([], [path(6)], results) == of_person_0
  assert known.correct(["person 3 wears red."], [path(6)], results) == of_person_0
  assert known.correct(["someone"], [path(6)], results) == of_person_0
  assert known.correct(["someone"], [], results) == [True] * 4
  assert known.correct([], [path(6)], [(path(1), path(3)), (path(1), path(4))]) == [True, False]
  assert known.correct([], [path(6)], []) == []


def test_without_an_identity_nothing_is_known(known, image_folder, tmp_path):
  results = [(image_folder / "b" / "c" / "0.png",)]
  elsewhere = tmp_path / "0.png"
  shutil.copy(results[0][0], elsewhere)
  for texts, files in (
    ([], []),
    (["a red coat"], []),
    ([], [elsewhere]),
    ([], [None]),
    (["person 0 wears red."], [None]),
    (["person 0 wears red.", "with a hat"], []),
    (["person 0 wears red.", "person 1 wears red."], []),
  ):
    assert known.correct(texts, files, results) is None, (texts, files)
  assert Identities([], image_folder).correct(["someone"], [], results) is None


def test_a_link_to_an_image_is_the_image(known, image_folder, tmp_path):
  (tmp_path / "link").symlink_to(image_folder)
  results = [(image_folder / "b" / "c" / "0.png",)]
  assert known.correct([], [tmp_path / "link" / "a" / "3.png"], results) == [True]


def test_annotations_may_name_images_through_links(annotations, image_folder):
  """Links to folders inside the folder of images."""
  (image_folder / "link").symlink_to("a")
  annotations.write_text(annotations.read_text().replace('"a/', '"link/'))
  rows = identities.read_annotations(str(annotations), image_folder)
  known = Identities(rows, image_folder)
  path = lambda number: image_folder / ("a" if number % 2 else "b/c") / f"{number}.png"
  results = [(path(number),) for number in (0, 3, 4, 9)]
  assert known.correct(["person 3 wears red."], [], results) == [True, True, False, True]
  assert known.correct([], [path(3)], results) == [True, True, False, True]


def test_annotations_may_name_links_to_images(annotations, image_folder):
  """And results may be links to annotated images."""
  (image_folder / "named.png").symlink_to("a/3.png")
  (image_folder / "found.png").symlink_to("b/c/0.png")
  annotations.write_text(annotations.read_text().replace('"a/3.png"', '"named.png"'))
  known = Identities(identities.read_annotations(str(annotations), image_folder), image_folder)
  results = [(image_folder / name,) for name in ("a/3.png", "named.png", "found.png", "a/1.png")]
  assert known.correct(["person 3 wears red."], [], results) == [True, True, True, False]


def test_examples_are_captions_of_different_people(known):
  assert len(set(known.examples)) == identities.NUM_EXAMPLES
  assert all(example.startswith("Person ") for example in known.examples)
  assert Identities([], "images").examples == ()


@pytest.mark.parametrize("which, num_known", [([], 0), (["1", "4"], 2)])
def test_images_without_an_id_are_of_unknown_people(
  annotations, image_folder, tmp_path, which, num_known
):
  entries = json.loads(annotations.read_text())
  for entry in entries:
    if not any(entry["img_path"].endswith(f"/{stem}.png") for stem in which):
      del entry["id"]
  file = tmp_path / "some.json"
  file.write_text(json.dumps(entries))
  rows = identities.read_annotations(str(file), image_folder)
  assert len(rows) == 10 and sum(row.person is not None for row in rows) == num_known
  assert len(Identities(rows, image_folder).examples) == identities.NUM_EXAMPLES


def test_what_is_written_is_read(annotations, image_folder, tmp_path):
  rows = identities.read_annotations(str(annotations), image_folder)
  assert index_files.read_annotated(tmp_path) == []
  index_files.write_annotated(tmp_path, rows)
  assert index_files.read_annotated(tmp_path) == rows
  path = tmp_path / index_files.ANNOTATED
  for content in (
    b"",
    b"{",
    b'{"rows": []}',
    path.read_bytes().replace(b"Person 1", b"Person 2"),
  ):
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"annotated\.json"):
      index_files.read_annotated(tmp_path)


def test_mistakes_are_one_line(annotations, image_folder, tmp_path):
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="names no image in"):
    identities.read_annotations(str(annotations), tmp_path / "empty")
  with pytest.raises(UserError, match="no file"):
    identities.read_annotations(str(tmp_path / "gone.json"), image_folder)
  entries = json.loads(annotations.read_text())
  entries[0]["id"] = 1.5
  annotations.write_text(json.dumps(entries))
  with pytest.raises(UserError, match="--annotations=.*neither a whole number nor text"):
    identities.read_annotations(str(annotations), image_folder)
