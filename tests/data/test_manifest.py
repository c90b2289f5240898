"""Data in every form that other tools write becomes a dataset that can be checked and built."""

import csv
import io
import json
import os
import pathlib
import random
import tarfile

import pyarrow
import pytest
from pyarrow import parquet

from dgia_jax.data import __main__ as command
from dgia_jax.data import annotations, manifest
from dgia_jax.data.manifest_readers import Columns
from dgia_jax.errors import UserError
from tests.helpers import fake_datasets

PEOPLE = ("anna", "ben", "carl", "dora")


def _rows(folder):
  """Writes two images of each person; (path, two captions, person, split) of each image."""
  rows = []
  for n, person in enumerate(PEOPLE):
    for shot in range(2):
      path = f"{person}/{shot}.png"
      fake_datasets.write_image(folder / path, seed=2 * n + shot)
      captions = [fake_datasets.caption(n, shot), f"{person} walks"]
      rows.append((path, captions, person, "train" if n < 2 else "test"))
  return rows


def _write_csv(path, header, rows, delimiter=","):
  with path.open("w", newline="", encoding="utf-8") as file:
    csv.writer(file, delimiter=delimiter).writerows([header, *rows])


def _csv(folder):
  rows = [(path, *captions, person, split) for path, captions, person, split in _rows(folder)]
  _write_csv(folder / "t.csv", ("image", "caption1", "caption2", "id", "split"), rows)
  return folder / "t.csv"


def _tsv_with_a_row_per_caption(folder):
  rows = [(path, text, person, split) for path, captions, person, split in _rows(folder)
          for text in captions]  # fmt: skip
  _write_csv(folder / "t.tsv", ("file_name", "text", "pid", "split"), rows, delimiter="\t")
  return folder / "t.tsv"


def _csv_of_a_spreadsheet(folder):
  """Semicolons between columns, and names that begin with a capital letter."""
  rows = [(path, text, person, split) for path, captions, person, split in _rows(folder)
          for text in captions]  # fmt: skip
  _write_csv(folder / "t.csv", ("Filename", "Caption", "ID", "Split"), rows, delimiter=";")
  return folder / "t.csv"


def _folders(folder):
  for path, captions, _, split in _rows(folder / "all"):
    image = folder / "people" / split / path
    image.parent.mkdir(parents=True, exist_ok=True)
    (folder / "all" / path).rename(image)
    image.with_suffix(".txt").write_text("\n".join(captions) + "\n")
  return folder / "people"


def _imagefolder(folder):
  lines = {"train": [], "test": []}
  for path, captions, person, split in _rows(folder):
    target = folder / "data" / split / path
    target.parent.mkdir(parents=True, exist_ok=True)
    (folder / path).rename(target)
    lines[split].append(json.dumps({"file_name": path, "text": captions, "id": person}))
  for split, texts in lines.items():
    (folder / "data" / split / "metadata.jsonl").write_text("\n".join(texts))
  return folder / "data"


def _parquet(folder):
  rows = _rows(folder / "png")
  (folder / "data").mkdir()
  for split in ("train", "test"):
    part = [
      {"image": {"bytes": (folder / "png" / path).read_bytes(), "path": None},
       "captions": captions, "person_id": person}
      for path, captions, person, row_split in rows if row_split == split
    ]  # fmt: skip
    file = folder / "data" / f"{split}-00000-of-00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(part), file)
  return folder / "data"


def _webdataset(folder):
  rows = _rows(folder / "png")
  (folder / "shards").mkdir()
  for split in ("train", "test"):
    with tarfile.open(folder / "shards" / f"{split}-000.tar", "w") as shard:
      for n, (path, captions, person, row_split) in enumerate(rows):
        if row_split == split:
          for ending, content in (
            ("png", (folder / "png" / path).read_bytes()),
            ("txt", "\n".join(captions).encode()),
            ("json", json.dumps({"id": person}).encode()),
          ):
            member = tarfile.TarInfo(f"../{n:04d}.{ending}")
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
  return folder / "shards"


FORMS = (
  _csv, _csv_of_a_spreadsheet, _tsv_with_a_row_per_caption, _folders, _imagefolder, _parquet,
  _webdataset,
)  # fmt: skip


@pytest.mark.parametrize("write", FORMS)
def test_every_form_becomes_a_dataset(tmp_path, capsys, write):
  folder = tmp_path / "source"
  folder.mkdir()
  out = tmp_path / "out"
  assert command.main(["make", str(write(folder)), "--out", str(out)]) == 0
  page = capsys.readouterr().out
  assert f"{out / 'annotations.json'}: train 4, val 0, test 4 images" in page
  # The printed command works as it is.
  line = page.splitlines()[-1].removeprefix("next: python -m dgia_jax.data ").split()
  assert line[:2] == ["check", "custom"] and command.main(line) == 0
  records = annotations.read_annotations([out / "annotations.json"]).records
  wanted = {
    (n, split): [fake_datasets.caption(n, shot), f"{person} walks"]
    for n, (person, split) in enumerate(
      zip(PEOPLE, ("train", "train", "test", "test"), strict=True)
    )
    for shot in range(2)
  }
  assert {(record.person, record.split) for record in records} == wanted.keys()
  assert sorted(record.captions[1] for record in records) == sorted(
    f"{person} walks" for person in PEOPLE for _ in range(2)
  )
  assert sorted(record.captions[0] for record in records) == sorted(
    fake_datasets.caption(n, shot) for n in range(4) for shot in range(2)
  )
  # Content inside archives is written unchanged, and nothing is written elsewhere.
  assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


def test_people_are_divided_by_seed(tmp_path):
  people = [*(f"p{n}" for n in range(99)), "\udcff"]
  first = manifest.split_people(people, (0.8, 0.1, 0.1), 0)
  assert first == manifest.split_people(people[::-1] * 2, (0.8, 0.1, 0.1), 0)
  assert first != manifest.split_people(people, (0.8, 0.1, 0.1), 1)
  splits = list(first.values())
  assert [splits.count(split) for split in ("train", "val", "test")] == [80, 10, 10]


def test_all_images_of_a_person_get_one_split(tmp_path):
  rows = [(path, captions[0], person) for path, captions, person, _ in _rows(tmp_path)]
  _write_csv(tmp_path / "t.csv", ("image", "caption", "id"), rows)
  out = tmp_path / "out"
  line = ["make", str(tmp_path / "t.csv"), "--out", str(out), "--split", "0.5,0.25,0.25"]
  assert command.main(line) == 0
  records = annotations.read_annotations([out / "annotations.json"]).records
  assert len({(record.person, record.split) for record in records}) == len(PEOPLE)
  assert sorted({record.split for record in records}) == ["test", "train", "val"]


def test_later_rows_of_json_may_have_more_columns(tmp_path):
  rows = [
    {"img_path": path, "caption_1": captions[0]} | ({"id": person} if n else {})
    for n, (path, captions, person, _) in enumerate(_rows(tmp_path))
  ]
  rows[-1]["caption_2"] = "and another"
  (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  line = ["make", str(tmp_path / "t.jsonl"), "--out", str(tmp_path / "out"), "--split", "0.5,0,0.5"]
  assert command.main(line) == 0
  written = json.loads((tmp_path / "out" / "annotations.json").read_text())
  assert [entry.get("id") for entry in written] == [row.get("id") for row in rows]
  assert "and another" in written[-1]["captions"]


def test_entries_of_json_are_read_as_the_checker_reads_them(tmp_path, capsys):
  image = _rows(tmp_path)[0][0]
  file = tmp_path / "t.json"
  entry = {"img_path": image, "captions": ["a"], "split": None}
  file.write_text(json.dumps({"train": [entry]}))
  assert command.main(["make", str(file), "--out", str(tmp_path / "out")]) == 0
  assert "train 1, val 0" in capsys.readouterr().out
  file.write_text(f'[{{"id": 1, "id": 2, "img_path": "{image}", "captions": ["a"]}}]')
  assert command.main(["make", str(file), "--out", str(tmp_path / "out2")]) == 2
  assert "has the key 'id' twice" in capsys.readouterr().err


def test_columns_can_be_named(tmp_path):
  rows = [(path, captions[0], person) for path, captions, person, _ in _rows(tmp_path)]
  _write_csv(tmp_path / "t.csv", ("picture", "beschreibung", "wer"), rows)
  columns = Columns(image="picture", captions=("beschreibung",), person="wer")
  written = manifest.make(
    str(tmp_path / "t.csv"), tmp_path / "out", columns=columns, fractions=(0.5, 0.0, 0.5)
  )
  assert written.entries == {"train": 4, "val": 0, "test": 4}
  assert json.loads(written.file.read_text())[0]["id"] == "anna"


def test_links_to_folders_of_people_are_followed(tmp_path):
  _rows(tmp_path / "archive")
  people = tmp_path / "people"
  for n, person in enumerate(PEOPLE):
    for image in (tmp_path / "archive" / person).iterdir():
      image.with_suffix(".txt").write_text(f"{person} walks")
    split = people / ("train" if n < 2 else "test")
    split.mkdir(parents=True, exist_ok=True)
    (split / person).symlink_to(tmp_path / "archive" / person)
  (people / "train" / "circle").symlink_to(people)
  written = manifest.make(str(people), tmp_path / "out")
  assert written.entries == {"train": 4, "val": 0, "test": 4}
  entries = json.loads(written.file.read_text())
  assert {entry["id"] for entry in entries} == set(PEOPLE)
  assert all((written.images / entry["img_path"]).is_file() for entry in entries)


def _csv_with_unquoted_commas(folder):
  (folder / "a.csv").write_text("image,text,split\nx,a man,test\ny,tall, in red,test\n")
  return folder / "a.csv"


def _parquet_in_latin_1(folder):
  text = pyarrow.array([b"caf\xe9"]).view(pyarrow.string())
  table = pyarrow.table({"image": pyarrow.array(["x.png"]), "text": text})
  parquet.write_table(table, folder / "x.parquet")
  return folder / "x.parquet"


UNUSUAL = "a red\u2028coat\x85and\x0ca\u2029hat\x1c"  # characters that end no line of a file


def test_only_line_ends_separate_rows_and_captions(tmp_path):
  quoted = f'"{UNUSUAL} of\r\ntwo lines"'
  (tmp_path / "x.png").touch()
  (tmp_path / "y.png").touch()
  (tmp_path / "t.csv").write_text(f"image,text,split\r\nx.png,{UNUSUAL}.,train\ry.png,{quoted},dev")
  written = manifest.make(str(tmp_path / "t.csv"), tmp_path / "out")
  captions = [entry["captions"] for entry in json.loads(written.file.read_text())]
  assert captions == [[f"{UNUSUAL}."], [f"{UNUSUAL} of\r\ntwo lines"]]


def test_only_line_ends_separate_captions_of_text_files(tmp_path):
  text = f"{UNUSUAL}.\r\n\r\n{UNUSUAL}!\rlast\n".encode()
  (tmp_path / "people" / "train" / "anna").mkdir(parents=True)
  (tmp_path / "people" / "train" / "anna" / "0.png").touch()
  (tmp_path / "people" / "train" / "anna" / "0.txt").write_bytes(text)
  with tarfile.open(tmp_path / "train.tar", "w") as shard:
    for name, content in (("0.png", b"image"), ("0.txt", text)):
      member = tarfile.TarInfo(name)
      member.size = len(content)
      shard.addfile(member, io.BytesIO(content))
  for source in ("people", "train.tar"):
    written = manifest.make(str(tmp_path / source), tmp_path / f"out {source}")
    (entry,) = json.loads(written.file.read_text())
    assert entry["captions"] == [f"{UNUSUAL}.", f"{UNUSUAL}!", "last"]


def test_blank_cells_beyond_the_last_column_are_accepted(tmp_path):
  (tmp_path / "x.png").touch()
  (tmp_path / "t.csv").write_text("image,text,split\nx.png,a man,train,, \n")
  written = manifest.make(str(tmp_path / "t.csv"), tmp_path / "out")
  assert json.loads(written.file.read_text())[0]["captions"] == ["a man"]


def test_images_without_captions_are_counted(tmp_path):
  folder = _folders(tmp_path)
  next(folder.rglob("*.txt")).unlink()
  written = manifest.make(str(folder), tmp_path / "out")
  assert written.without_caption == 1 and sum(written.entries.values()) == 7


def test_images_in_another_folder_are_asked_for(tmp_path, capsys):
  _rows(tmp_path / "images")
  rows = [(f"{person}/{n}.png", "a man") for person in PEOPLE for n in range(2)]
  _write_csv(tmp_path / "t.csv", ("image", "text"), rows)
  line = ["make", str(tmp_path / "t.csv"), "--out", str(tmp_path / "out"), "--split", "1,0,0"]
  assert command.main(line) == 2
  (error,) = capsys.readouterr().err.splitlines()
  assert f"none of its 8 images is in {tmp_path}, first anna/0.png: give" in error
  assert "--images" in error and not (tmp_path / "out").exists()
  assert command.main([*line, "--images", str(tmp_path / "images")]) == 0
  assert "are not in" not in capsys.readouterr().out


def test_a_folder_of_images_that_is_missing_or_remote_is_named(tmp_path):
  make = lambda **options: manifest.make(str(table), **{"out": tmp_path / "out", **options})
  table = _csv(tmp_path)
  with pytest.raises(UserError, match=f"no folder {tmp_path}/pictures .--images."):
    make(images=f"{tmp_path}/pictures")
  with pytest.raises(UserError, match="--images=gs://bucket/pictures: remote paths"):
    make(images="gs://bucket/pictures")
  with pytest.raises(UserError, match="--out=gs://bucket/out: remote paths"):
    make(out="gs://bucket/out")
  with pytest.raises(UserError, match="source=gs://bucket/t.csv: remote paths"):
    manifest.make("gs://bucket/t.csv", tmp_path / "out")


@pytest.mark.parametrize("path", ["images/anna/0.png", "images\\anna\\0.png", "{absolute}"])
def test_images_are_found_as_the_check_finds_them(tmp_path, path):
  _rows(tmp_path / "images")
  absolute = tmp_path / "images" / "anna" / "0.png"
  (tmp_path / "sub").mkdir()
  _write_csv(
    tmp_path / "sub" / "t.csv", ("image", "text", "split"),
    [(path.format(absolute=absolute), "a", "train")],
  )  # fmt: skip
  written = manifest.make(
    str(tmp_path / "sub" / "t.csv"), tmp_path / "out", images=str(tmp_path / "images")
  )
  assert written.missing == []


def test_missing_images_are_counted(tmp_path, capsys):
  table = _csv(tmp_path)
  (tmp_path / "ben" / "1.png").unlink()
  (tmp_path / "dora" / "0.png").unlink()
  assert command.main(["make", str(table), "--out", str(tmp_path / "out")]) == 0
  page = capsys.readouterr().out
  assert f"2 of 8 images are not in {tmp_path}, first ben/1.png: add them" in page
  assert "--skip_unreadable" in page
  written = json.loads((tmp_path / "out" / "annotations.json").read_text())
  assert len(written) == 8


@pytest.mark.parametrize("form", ["folders", "imagefolder"])
def test_a_form_of_folders_takes_no_file(tmp_path, form):
  with pytest.raises(UserError, match=f"t.csv is no folder: --form {form} takes a folder"):
    manifest.make(str(_csv(tmp_path)), tmp_path / "out", form=form)


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
  def scandir(path):
    raise PermissionError(13, "Permission denied", path)

  monkeypatch.setattr(os, "scandir", scandir)
  with pytest.raises(UserError, match=f"{tmp_path}: Permission denied: make the folder readable"):
    manifest.make(str(tmp_path), tmp_path / "out")


def test_a_link_to_itself_is_no_folder(tmp_path):
  folder = _folders(tmp_path)
  (folder / "loop").symlink_to(folder / "loop")
  assert sum(manifest.make(str(folder), tmp_path / "out").entries.values()) == 8


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_damaged_compressed_shards_end_in_one_line(tmp_path, compression):
  # Of words that repeat: damage to compressed random bytes decodes to other random bytes.
  words = [f"{n**5:x}" for n in range(2_000)]
  content = " ".join(random.Random(0).choices(words, k=12_000)).encode()
  shard = tmp_path / "train.tar"
  with tarfile.open(shard, f"w:{compression}") as archive:
    for name in ("0.png", "0.txt", "1.png", "1.txt"):
      member = tarfile.TarInfo(name)
      member.size = len(content) if name.endswith("png") else 2
      archive.addfile(member, io.BytesIO(content if name.endswith("png") else b"a\n"))
  whole, generator, refused = shard.read_bytes(), random.Random(1), 0
  for n in range(10):
    place = generator.randrange(len(whole) // 2, len(whole))
    shard.write_bytes(whole[:place] + generator.randbytes(20) + whole[place + 20 :])
    try:
      manifest.make(str(shard), tmp_path / f"out{n}")
    except UserError as error:
      assert "cannot be read as a tar archive" in str(error)
      refused += 1
  assert refused


def _damaged(path):
  """A tar archive whose second header is moved by one byte."""
  content = path.read_bytes()
  start = content.index(b"../0000.txt")
  path.write_bytes(content[:start] + b"?" + content[start:])
  return path


def _truncated(path, size=100):
  path.write_bytes(path.read_bytes()[:size])
  return path


@pytest.mark.parametrize(
  ("prepare", "options", "message"),
  [
    (lambda f: f / "nowhere", {}, "no file or folder .*nowhere"),
    (lambda f: (f / "x.doc").write_text("") or f / "x.doc", {}, "choose one with --form"),
    (lambda f: _write_csv(f / "a.csv", "ab", ["cd"]) or f / "a.csv", {}, "'a', 'b': choose with"),
    (_csv, dict(columns=Columns(image="photo")), "no column 'photo', only 'image'"),
    (lambda f: (f / "a.csv").write_bytes(b"\xe9\xff") and f / "a.csv", {}, "save it as UTF-8"),
    (lambda f: (f / "a.csv").write_text('image,text\n"x') and f / "a.csv", {}, "1: unexpected end"),
    (_csv_with_unquoted_commas, {},
     "a.csv, line 3, has 'test' beyond the last column: put .* in double quotes"),
    (lambda f: _rows(f) and f, {}, "no image with a caption \\(8 without\\)"),
    (lambda f: _truncated(next(_parquet(f).iterdir())), {}, "cannot be read as Parquet"),
    (_parquet_in_latin_1, {}, "x.parquet: the column 'text' has text that is not UTF-8"),
    (lambda f: _truncated(next(_webdataset(f).iterdir())), {}, "cannot be read as a tar"),
    (lambda f: _damaged(_webdataset(f) / "train-000.tar"), {}, "cannot be read as a tar"),
    (lambda f: _write_csv(f / "a.csv", ("image", "text"), [("x", "y")]) or f / "a.csv", {},
     "x has no split; divide the people with --split"),
  ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, prepare, options, message):
  with pytest.raises(UserError, match=message) as caught:
    manifest.make(str(prepare(tmp_path)), tmp_path / "out", **options)
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["0.8", "0.8,0.1,0.2", "1,1,-1", "a,b,c", "nan,0.5,0.5"])
def test_fractions_must_add_up(text):
  with pytest.raises(UserError, match="such as 0.8,0.1,0.1"):
    manifest.parse_fractions(text)


def test_existing_annotations_are_kept(tmp_path):
  table = _csv(tmp_path)
  fake_datasets.write_json(tmp_path / "out" / "annotations.json", [])
  with pytest.raises(UserError, match="exists already"):
    manifest.make(str(table), tmp_path / "out")
  assert pathlib.Path(tmp_path, "out", "annotations.json").read_text() == "[]"


@pytest.mark.parametrize("out", ["~nobody-here/out", "a" * 300])
def test_an_impossible_output_is_named(tmp_path, out):
  with pytest.raises(UserError, match=f"--out=.*{out}.*: (no home|cannot be read)"):
    manifest.make(str(_csv(tmp_path)), out)
