"""Image files are told from other files by their endings, before any of them is opened."""

from dgia_jax.search import image_files


def test_only_files_that_can_be_decoded_are_listed(tmp_path):
  for name in ("a.jpg", "b.PNG", "film.mpg", "film.mpeg", "data.h5", "data.hdf", "paper.ps",
               "drawing.eps", "drawing.wmf", "wind.grib", "wind.bufr", "notes.txt"):  # fmt: skip
    (tmp_path / name).touch()
  listing = image_files.list_images(tmp_path)
  assert [file.path for file in listing.files] == ["a.jpg", "b.PNG"]
  assert listing.unsupported == {".eps": 1, ".wmf": 1} and listing.unreadable == []
