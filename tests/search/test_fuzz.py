"""Damaged indices: the results of the sound index, or one clear line."""

import contextlib
import os
import random
import shutil

import pytest

from dgia_jax.errors import UserError
from dgia_jax.search import index as index_lib
from dgia_jax.search.retriever import Retriever
from tests.helpers.known_run import draw_image

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(300)]

WRONG_JSON = (
  b"", b"{", b"[]", b"{}", b"null", b"7", b'"x"', b"[[1]]", b"9" * 5000, b"[" * 100_000,
  b"\xff\xfe", b'{"format": 3}', b'{"rows": 1, "parts": -1}', b'{"rows": [], "parts": 0}',
)  # fmt: skip


@pytest.fixture
def retriever(known_run):
  return Retriever.from_run(known_run, batch_size=8)


@pytest.fixture
def indices(retriever, known_run, image_folder, tmp_path, monkeypatch, rng):
  """The index to be damaged, of three parts, and one of another folder."""
  monkeypatch.setattr(index_lib, "PART_IMAGES", 4)
  (image_folder / "a" / "broken.jpg").unlink()
  index_lib.build(retriever, known_run, image_folder, tmp_path / "index")
  (image_folder / "a" / "1.png").unlink()  # so that a row is gone
  draw_image(image_folder / "a" / "3.png", rng)  # and another replaced
  index_lib.build(retriever, known_run, image_folder, tmp_path / "index")
  draw_image(tmp_path / "others" / "x.png", rng)
  index_lib.build(retriever, known_run, tmp_path / "others", tmp_path / "other")
  return tmp_path / "index", tmp_path / "other"


def results(folder, retriever):
  index = index_lib.SearchIndex(folder, retriever.mesh)
  queries = retriever.embed_texts(["a red coat", "blue shoes"])
  return [
    [(str(match.path), match.score) for match in index.matches(query, 10)] for query in queries
  ]


def damage(folder, other, draw):
  """One to two faults in the files of an index; returns what was done."""
  done = []
  for _ in range(draw.choice((1, 1, 2))):
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    if not files:
      break
    path = draw.choice(files)
    kind = draw.choice(
      ("flip", "flip", "flip", "cut", "empty", "delete", "swap", "json", "fifo", "add")
    )
    done.append((kind, path.name))
    content = bytearray(path.read_bytes())
    if kind == "flip" and content:
      content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
      del content[draw.randrange(len(content) + 1) :]
    elif kind == "empty":
      content.clear()
    elif kind == "add":
      (path.parent / ".DS_Store").write_bytes(draw.randbytes(20))
    elif kind == "json":
      content[:] = draw.choice(WRONG_JSON)
    elif kind == "swap":
      source = draw.choice([*files, *(p for p in other.rglob("*") if p.is_file())])
      content[:] = source.read_bytes()
    path.unlink()
    if kind == "fifo":
      os.mkfifo(path)
    elif kind != "delete":
      path.write_bytes(content)
  return done


@pytest.mark.parametrize("seed", range(2))
def test_a_damaged_index_is_refused_or_gives_the_same_results(
  indices, retriever, image_folder, known_run, tmp_path, seed
):
  sound, other = indices
  expected = results(sound, retriever)
  draw = random.Random(seed)
  refused = 0
  for number in range(60):
    folder = tmp_path / f"damaged_{number}"
    shutil.copytree(sound, folder)
    done = damage(folder, other, draw)
    try:
      assert results(folder, retriever) == expected, done
      if number % 4 == 0:  # so does an update
        index_lib.build(retriever, known_run, image_folder, folder)
        assert results(folder, retriever) == expected, done
    except UserError as error:
      assert str(folder) in str(error) and "\n" not in str(error), done
      refused += 1
      with contextlib.suppress(UserError):  # an update may replace what is damaged
        index_lib.build(retriever, known_run, image_folder, folder)
        assert results(folder, retriever) == expected, done
    shutil.rmtree(folder)
  assert 30 < refused < 60
