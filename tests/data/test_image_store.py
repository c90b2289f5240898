"""Images from Parquet and tar files: nothing is overwritten, half-written or written twice."""

import io
import json
import tarfile

import pyarrow
import pytest
from pyarrow import parquet

from dgia_jax import files
from dgia_jax.data import __main__ as command
from dgia_jax.data import image_store, manifest
from dgia_jax.errors import UserError
from tests.helpers import fake_datasets


def _contents(folder, number):
  for n in range(number):
    fake_datasets.write_image(folder / f"{n}.png", seed=n)
  return [(folder / f"{n}.png").read_bytes() for n in range(number)]


def _parquet(folder, rows, split="train"):
  """Writes rows (content, caption, id) and returns the file."""
  table = [{"image": {"bytes": c}, "text": t, "id": i, "split": split} for c, t, i in rows]
  parquet.write_table(pyarrow.Table.from_pylist(table), folder / "x.parquet")
  return folder / "x.parquet"


def _tar(folder, rows, split="train"):
  with tarfile.open(folder / "x.tar", "w") as shard:
    for n, (content, caption, person) in enumerate(rows):
      facts = json.dumps({"text": caption, "id": person, "split": split}).encode()
      for name, part in ((f"{n}.png", content), (f"{n}.json", facts)):
        member = tarfile.TarInfo(name)
        member.size = len(part)
        shard.addfile(member, io.BytesIO(part))
  return folder / "x.tar"


@pytest.fixture(params=[_parquet, _tar])
def write(request):
  return request.param


@pytest.fixture
def source(tmp_path, write):
  return write(tmp_path, [(c, f"person {n}", n) for n, c in enumerate(_contents(tmp_path, 3))])


def test_a_picture_with_a_row_per_caption_is_one_image(tmp_path, write):
  first, second = _contents(tmp_path, 2)
  rows = [(first, "a", 1), (second, "b", 2), (first, "c", 1), (first, "d", 1)]
  written = manifest.make(str(write(tmp_path, rows)), tmp_path / "out")
  assert written.entries == {"train": 2, "val": 0, "test": 0}
  entries = json.loads(written.file.read_text())
  assert [(e["img_path"], e["captions"], e["id"]) for e in entries] == [
    ("00000000.png", ["a", "c", "d"], 1), ("00000001.png", ["b"], 2)]  # fmt: skip
  assert [(written.images / e["img_path"]).read_bytes() for e in entries] == [first, second]
  assert len(list(written.images.iterdir())) == 2


def test_a_picture_with_two_ids_is_an_error_of_the_check(tmp_path, write, capsys):
  (content,) = _contents(tmp_path, 1)
  source = write(tmp_path, [(content, "a", 1), (content, "b", 2)])
  manifest.make(str(source), tmp_path / "out")
  assert command.main(["check", "custom", "--source", str(tmp_path / "out")]) == 1
  assert "images named twice with different ids" in capsys.readouterr().out


def test_images_of_the_user_are_not_overwritten(tmp_path, source):
  own = tmp_path / "out" / "images" / "00000000.png"
  own.parent.mkdir(parents=True)
  own.write_text("mine")
  with pytest.raises(UserError, match="out/images exists already: choose another --out"):
    manifest.make(str(source), tmp_path / "out")
  assert own.read_text() == "mine"
  assert sorted((tmp_path / "out").rglob("*")) == [own.parent, own]
  own.unlink()
  assert manifest.make(str(source), tmp_path / "out").images == own.parent  # it is empty now
  assert len(list(own.parent.iterdir())) == 3


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_a_link_in_place_of_the_folder_is_refused_at_once(tmp_path, source, target):
  (tmp_path / "elsewhere").mkdir()
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "images").symlink_to(tmp_path / target)
  with pytest.raises(UserError, match="out/images exists already"):
    manifest.make(str(source), tmp_path / "out")
  assert [path.name for path in (tmp_path / "out").iterdir()] == ["images"]


def test_a_table_may_be_beside_its_images(tmp_path):
  _contents(tmp_path / "images", 1)
  (tmp_path / "t.csv").write_text("image,text,split\n0.png,a man,train\n")
  folder = str(tmp_path / "images")
  assert manifest.make(str(tmp_path / "t.csv"), tmp_path, images=folder).entries["train"] == 1


@pytest.mark.parametrize("split", [None, "holiday"])
def test_a_missing_split_is_noticed_before_anything_is_written(tmp_path, write, monkeypatch, split):
  monkeypatch.setattr(image_store.ImageStore, "add", lambda *_: pytest.fail("was written"))
  (content,) = _contents(tmp_path, 1)
  with pytest.raises(UserError, match=r"image with the caption 'a man' has .*split.*--split 0\.8"):
    manifest.make(str(write(tmp_path, [(content, "a man", 1)], split)), tmp_path / "out")
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("moment", ["reading", "writing"])
@pytest.mark.parametrize("own_folder", [True, False])
def test_ctrl_c_leaves_nothing(tmp_path, source, capsys, monkeypatch, moment, own_folder):
  def interrupted(*_):
    raise KeyboardInterrupt

  if moment == "writing":
    monkeypatch.setattr(files, "write_text", interrupted)
  else:
    form = manifest.form_of(str(source))
    read = manifest.READERS[form]
    monkeypatch.setitem(
      manifest.READERS, form, lambda *a: (e if e.person < 2 else interrupted() for e in read(*a))
    )
  out = tmp_path / "out"
  if own_folder:
    out.mkdir()
    (out / "notes.txt").touch()
  assert command.main(["make", str(source), "--out", str(out)]) == 130
  assert "no half-built dataset" in capsys.readouterr().err
  assert [path.name for path in out.rglob("*")] == ["notes.txt"] * own_folder
  assert out.exists() == own_folder


def test_leftovers_of_a_killed_process_are_removed(tmp_path, source):
  (tmp_path / "out" / ".images.partial").mkdir(parents=True)
  (tmp_path / "out" / ".images.partial" / "old.png").touch()
  manifest.make(str(source), tmp_path / "out")
  paths = sorted(path.name for path in (tmp_path / "out").rglob("*"))
  assert paths == [*(f"0000000{n}.png" for n in range(3)), "annotations.json", "images"]


def test_a_failed_write_is_one_line_and_leaves_nothing(tmp_path, source, monkeypatch):
  def full(path, content):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(image_store.pathlib.Path, "write_bytes", full)
  with pytest.raises(UserError, match="out: No space left on device"):
    manifest.make(str(source), tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_content_that_is_no_image_is_kept_for_the_check(tmp_path, write):
  source = write(tmp_path, [(b"no image", "a", 1)])
  written = manifest.make(str(source), tmp_path / "out")
  assert (written.images / "00000000.jpg").read_bytes() == b"no image"
