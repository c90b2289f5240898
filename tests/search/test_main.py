"""The command line of search, from a folder of images to a ranked answer."""

import json

import numpy as np
import pytest
from PIL import Image

from dgia_jax.search import __main__ as search_cli
from dgia_jax.search.retriever import Retriever


def test_index_then_query(known_run, image_folder, tmp_path, capsys):
  index = [
    "index",
    "--run",
    str(known_run),
    "--images",
    str(image_folder),
    "--out",
    str(tmp_path / "i"),
  ]
  assert search_cli.main([*index, "--checkpoint", "last"]) == 0
  said = capsys.readouterr().out
  assert "10 images added" in said and "skipped a/broken.jpg" in said

  (tmp_path / "queries.txt").write_text("blue shoes\n\na hat\n")
  photo = image_folder / "a" / "3.png"
  ask = ["query", "--index", str(tmp_path / "i")]
  more = ["--file", str(tmp_path / "queries.txt"), "--image", str(photo), "--top", "3", "--json"]
  assert search_cli.main([*ask, "a red coat", *more, "--sheet", str(tmp_path / "s.png")]) == 0
  answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [a["query"] for a in answers] == ["a red coat", "blue shoes", "a hat", f"like {photo}"]
  assert answers[3]["results"][0] == {"path": str(photo), "score": pytest.approx(1.0, abs=1e-5)}

  model = Retriever.from_run(known_run, "last")
  files = sorted(image_folder.rglob("*.png"))
  features = model.embed_images(files)
  scores, rows = model.rank(model.embed_texts(["a red coat"]), features, top=3)
  assert [one["path"] for one in answers[0]["results"]] == [str(files[row]) for row in rows[0]]
  np.testing.assert_allclose([o["score"] for o in answers[0]["results"]], scores[0], atol=1e-5)
  with Image.open(tmp_path / "s.png") as sheet:
    assert sheet.height > 4 * 192

  assert search_cli.main([*ask, "a red coat", "--top", "2"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "a red coat" and len(lines) == 3
  assert lines[2].split() == ["2", f"{scores[0][1]:.3f}", answers[0]["results"][1]["path"]]


def test_mistakes_end_in_one_line(known_run, image_folder, tmp_path, capsys):
  def fails(*argv):
    assert search_cli.main([str(part) for part in argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error

  assert "no such folder" in fails("index", "--run", known_run, "--images", "nowhere", "--out", "i")
  assert "make an index first" in fails("query", "--index", tmp_path, "red")
  out = tmp_path / "i"
  search_cli.main(
    ["index", "--run", str(known_run), "--images", str(image_folder), "--out", str(out)]
  )
  capsys.readouterr()
  assert "nothing to search for" in fails("query", "--index", out)
  assert "--top=0" in fails("query", "--index", out, "red", "--top", 0)
  assert "--file=gone.txt" in fails("query", "--index", out, "--file", "gone.txt")
  assert "gone.jpg" in fails("query", "--index", out, "--image", "gone.jpg")
  assert "--sheet=" in fails("query", "--index", out, "red", "--sheet", tmp_path / "no" / "s.png")
  assert "which is gone" in fails("query", "--index", out, "red", "--run", tmp_path / "gone")
  about = json.loads((out / "index.json").read_text())
  (out / "index.json").write_text(json.dumps(about | {"model_digest": "another"}))
  assert "another model" in fails("query", "--index", out, "red")
