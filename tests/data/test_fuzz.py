"""Mutated files of users: each ends in a report or one line, and no image outside is read."""

import copy
import json
import os
import random

import pytest

from dgia_jax.data import __main__ as command
from dgia_jax.data import dataset_files
from dgia_jax.errors import UserError
from tests.data import test_manifest
from tests.helpers import fake_datasets

pytestmark = pytest.mark.fuzz

VALUES = (
  None, True, -1, 0, 7, 1.5, 2**31, 2**63, 2**64, -(2**70), 10**400, 1e300, float("nan"),
  float("inf"), "", " ", "7", "007", "-1", "9" * 5000, "\x1b[2J", "a\nb", "\u202e", "\u200b",
  "&nbsp;", "\ud83d", "\0", "x" * 5000, [], [[]], {}, {"a": {"b": []}}, ["a", 1], ["a", "b"],
  "['a', 'b']", "..", "../..", "../secret.png", "../../../../../../etc/passwd", "/etc/passwd",
  "/proc/self/mem", "/dev/zero", "..\\secret.png", "C:\\x.png", "file:///etc/passwd", "linked.png",
  "linked/secret.png", "images/../../secret.png", "images", ".", "train", "dev", "probe",
)  # fmt: skip
FIELDS = ("id", "person_id", "img_path", "file_path", "captions", "caption", "split", "\x1b[31m")
TOKENS = (
  b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"null", b"NaN", b"-", b"\n", b"\x00", b"\xff",
  b"9" * 5000, b"[" * 100_000, b'{"a":' * 100_000, b'"id": 3, ', b'"train": [], ', b"\xef\xbb\xbf",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
  """A dataset, a picture beside it, and links from the dataset to that picture."""
  fake_datasets.custom(tmp_path / "dataset")
  fake_datasets.write_image(tmp_path / "secret.png")
  (tmp_path / "dataset" / "images" / "linked.png").symlink_to(tmp_path / "secret.png")
  (tmp_path / "dataset" / "images" / "linked").symlink_to(tmp_path)
  return tmp_path / "dataset"


def written(entries, form):
  """Annotations in one of the accepted forms."""
  if form == "lines":
    return "\n".join(map(json.dumps, entries))
  if form == "splits":
    return json.dumps({"train": entries[:2], "test": entries[2:]})
  if form == "captions":
    return json.dumps({str(e.get("img_path")): e.get("captions") for e in map(dict, entries)})
  return json.dumps({"images": [], "annotations": entries} if form == "wrapped" else entries)


def mutated(entries, generator):
  """The bytes of a file with one to three faults, in its values or in its bytes."""
  entries = copy.deepcopy(entries)
  for _ in range(generator.choice((0, 1, 1, 2, 3))):
    entry = generator.choice(entries)
    field, value = generator.choice(FIELDS), generator.choice(VALUES)
    entry[field] = value
    if generator.random() < 0.1:
      del entry[field]
  raw = written(entries, generator.choice(("list", "lines", "splits", "captions", "wrapped")))
  raw = raw.encode(generator.choice(("utf-8", "utf-8", "utf-8", "utf-16", "utf-32")))
  return with_damaged_bytes(raw, generator, generator.choice((0, 0, 1, 2)))


def with_damaged_bytes(raw, generator, faults):
  """A file's content with bytes replaced, repeated or inserted in several places."""
  for _ in range(faults):
    start = generator.randrange(len(raw))
    end = start + generator.choice((0, 0, 1, 20))
    raw = raw[:start] + generator.choice((*TOKENS, raw[start:end] * 2)) + raw[end:]
  return raw


@pytest.mark.parametrize("seed", range(8))
def test_mutated_annotations_are_reported_or_refused(folder, capsys, seed):
  generator = random.Random(seed)
  entries = json.loads((folder / "annotations.json").read_text())
  exit_codes = {0: 0, 1: 0, 2: 0}
  for _ in range(200):
    raw = mutated(entries, generator)
    (folder / "annotations.json").write_bytes(raw)
    exit_code = command.main(["check", "custom", "--source", str(folder), "--show", "3"])
    exit_codes[exit_code] += 1
    page, error = capsys.readouterr()
    assert all(line.isprintable() for line in page.split("\n")), raw[:2000]
    assert error.count("\n") == (exit_code == 2), raw[:2000]
    assert error.rstrip("\n").isprintable() and len(error) < 2000
    try:
      files = dataset_files.open_dataset("custom", source=str(folder))
    except UserError:
      continue
    for path in filter(None, files.paths):
      assert os.path.realpath(path).startswith(f"{folder}/"), raw[:2000]
  assert min(exit_codes.values()) > 10, exit_codes


def test_what_the_check_accepts_can_be_built(folder, tmp_path, capsys):
  generator = random.Random(100)
  entries = json.loads((folder / "annotations.json").read_text())
  built = 0
  while built < 15:
    raw = mutated(entries, generator)
    (folder / "annotations.json").write_bytes(raw)
    if command.main(["check", "custom", "--source", str(folder)]) == 0:
      line = ["prepare", "custom", "--source", str(folder), "--data_dir", str(tmp_path / "built")]
      assert command.main(line) == 0, raw[:2000]
      built += 1
    capsys.readouterr()


@pytest.mark.parametrize("write", test_manifest.FORMS)
def test_damaged_data_in_other_forms_is_refused_or_read(tmp_path, capsys, write):
  generator = random.Random(0)
  (tmp_path / "in").mkdir()
  source = write(tmp_path / "in")
  inside = sorted(source.rglob("*.*")) if source.is_dir() else [source]
  contents = {path: path.read_bytes() for path in inside if path.suffix not in ("", ".png")}
  for n in range(60):
    path, content = generator.choice(list(contents.items()))
    path.write_bytes(with_damaged_bytes(content, generator, generator.choice((1, 1, 3))))
    out = str(tmp_path / f"out{n}")
    exit_code = command.main(["make", str(source), "--out", out])
    error = capsys.readouterr().err
    assert exit_code in (0, 2) and error.count("\n") == (exit_code == 2), path.read_bytes()[:2000]
    if exit_code == 0:
      images = str(source if source.is_dir() else source.parent)
      line = ["check", "custom", "--source", out, "--images", images, "--quick"]
      assert command.main(line) in (0, 1)
      capsys.readouterr()
    path.write_bytes(content)
