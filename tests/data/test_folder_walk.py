"""Links in a user's folder are followed, and no folder is visited twice."""

from dgia_jax.data import folder_walk


def visited(folder):
  errors = []
  folders = [parent for parent, _ in folder_walk.walk(str(folder), errors.append)]
  return [path.removeprefix(f"{folder}/") for path in folders], errors


def test_links_are_followed_and_circles_end(tmp_path):
  for name in ("in/b/c", "in/d", "elsewhere/e"):
    (tmp_path / name).mkdir(parents=True)
  (tmp_path / "in" / "a").symlink_to(tmp_path / "in" / "b")  # before the folder in the alphabet
  (tmp_path / "in" / "d" / "up").symlink_to(tmp_path / "in")
  (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
  folders, errors = visited(tmp_path / "in")
  assert folders[1:] == ["b", "b/c", "d", "linked", "linked/e"] and not errors


def test_names_of_files_are_yielded(tmp_path):
  (tmp_path / "a.txt").touch()
  (tmp_path / "broken").symlink_to(tmp_path / "nothing")
  ((parent, names),) = folder_walk.walk(str(tmp_path), print)
  assert parent == str(tmp_path) and sorted(names) == ["a.txt", "broken"]


def test_folders_that_cannot_be_listed_are_reported(tmp_path):
  folders, (error,) = visited(tmp_path / "nothing")
  assert folders == [] and error.filename == str(tmp_path / "nothing")
