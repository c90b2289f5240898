"""Image files are told from other files by their endings, before any of them is opened."""

from dgia_jax.search import image_files


def test_only_files_that_can_be_decoded_are_listed(tmp_path):
  for name in ("a.jpg", "b.PNG", "film.mpg", "film.mpeg", "data.h5", "data.hdf", "paper.ps",
               "drawing.eps", "drawing.wmf", "wind.grib", "wind.bufr", "notes.txt"):  # fmt: skip
    (tmp_path / name).touch()
  listing = image_files.list_images(tmp_path)
  assert [file.path for file in listing.files] == ["a.jpg", "b.PNG"]
  assert listing.unsupported == {".eps": 1, ".wmf": 1} and listing.unreadable == []


def test_an_unreadable_folder_hides_its_files():
  listing = image_files.Listing([], {}, [("a/b", "Permission denied"), ("c.jpg", "an error")])
  assert [listing.hides(path) for path in ("a/b/1.jpg", "a/b/c/1.jpg", "c.jpg")] == [True] * 3
  assert not any(listing.hides(path) for path in ("a/1.jpg", "a/bc/1.jpg", "c.jpg2", "b/1.jpg"))
  assert image_files.Listing([], {}, [(".", "an error")]).hides("a/1.jpg")
