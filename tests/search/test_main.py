"""The command line of search, from a folder of images to ranked results."""

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dgia_jax import files, remote
from dgia_jax.errors import UserError
from dgia_jax.search import __main__ as search_cli
from dgia_jax.search import commands, export
from dgia_jax.search.exact import ExactGallery
from dgia_jax.search.index import SearchIndex
from dgia_jax.search.retriever import Retriever
from tests.helpers import known_run as known_run_lib
from tests.helpers.fake_gcs import gcs  # noqa: F401
from tests.search.small_index import write_index

# ruff: noqa: F811


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
  output = capsys.readouterr().out
  assert "10 images added" in output and "skipped a/broken.jpg" in output

  (tmp_path / "queries.txt").write_text("blue shoes\n\na hat\n")
  photo = image_folder / "a" / "3.png"
  ask = ["query", "--index", str(tmp_path / "i")]
  more = ["--file", str(tmp_path / "queries.txt"), "--image", str(photo), "--top", "3", "--json"]
  assert search_cli.main([*ask, "a red coat", *more, "--sheet", str(tmp_path / "s.png")]) == 0
  answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [a["query"] for a in answers] == ["a red coat", "blue shoes", "a hat", f"like {photo}"]

  model = Retriever.from_run(known_run, "last")
  files = sorted(image_folder.rglob("*.png"))
  features = model.embed_images(files)
  scores, rows = model.rank(model.embed_texts(["a red coat"]), features, top=3)
  assert [one["path"] for one in answers[0]["results"]] == [str(files[row]) for row in rows[0]]
  np.testing.assert_allclose([o["score"] for o in answers[0]["results"]], scores[0], atol=1e-5)
  like_scores, like_rows = model.rank(model.embed_images([photo]), features, top=4)
  assert files[like_rows[0, 0]] == photo  # the query itself, which is no result
  likes = answers[3]["results"]
  assert [one["path"] for one in likes] == [str(files[row]) for row in like_rows[0, 1:]]
  np.testing.assert_allclose([one["score"] for one in likes], like_scores[0, 1:], atol=1e-5)
  with Image.open(tmp_path / "s.png") as sheet:
    assert sheet.height > 4 * 192

  assert search_cli.main([*ask, "a red coat", "--top", "2"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "a red coat" and len(lines) == 3
  assert search_cli.main([*ask, "a red coat", "--only", "nowhere/*"]) == 0
  assert "a red coat: no image was found whose path matches nowhere/*" in capsys.readouterr().err
  assert lines[2].split() == ["2", f"{scores[0][1]:.3f}", answers[0]["results"][1]["path"]]

  assert search_cli.main([*ask, "a red coat", "--rerank", "--json"]) == 0
  reranked = json.loads(capsys.readouterr().out)["results"]
  matches = SearchIndex(tmp_path / "i", model.mesh).matches(
    model.embed_texts("a red coat")[0], 10, rerank=True
  )
  assert [one["path"] for one in reranked] == [str(match.path) for match in matches]
  assert [one["score"] for one in reranked] != sorted((o["score"] for o in reranked), reverse=True)


def test_a_shipped_model_needs_no_run_and_no_network(
  shipped_mini, image_folder, tmp_path, capsys, monkeypatch
):
  (tmp_path / "mini").mkdir()  # a folder of this name is ./mini
  monkeypatch.chdir(tmp_path)
  index = tmp_path / "index"
  arguments = ["--run", "mini", "--images", str(image_folder), "--out", str(index)]
  assert search_cli.main(["index", *arguments]) == 0
  assert json.loads((index / "index.json").read_text())["model"] == "mini"
  capsys.readouterr()
  for more in ([], ["--run", "mini"], ["--run", str(shipped_mini)]):
    assert search_cli.main(["query", "--index", str(index), "a red coat", "--json", *more]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert len(results) == 10
  model = Retriever.from_pretrained("mini")
  scores, _ = model.rank(model.embed_texts("a red coat"), model.embed_images(_paths(results)))
  np.testing.assert_allclose([one["score"] for one in results], scores[0], atol=1e-5)


def _paths(results):
  return [one["path"] for one in results]


def test_correct_results_are_marked(known_run, image_folder, tmp_path, capsys):
  file = known_run_lib.write_annotations(tmp_path / "annotations.json", image_folder)
  out = str(tmp_path / "i")
  flags = ["--run", str(known_run), "--images", str(image_folder), "--out", out]
  assert search_cli.main(["index", *flags, "--annotations", str(file)]) == 0
  assert "10 images have captions, 10 of them an identity" in capsys.readouterr().out
  photo = str(image_folder / "a" / "3.png")
  ask = ["query", "--index", out, "Person 3 wears red.", "a hat", "--image", photo]
  assert search_cli.main([*ask, "--json", "--sheet", str(tmp_path / "s.png")]) == 0
  caption, words, image = map(json.loads, capsys.readouterr().out.splitlines())
  for answer, correct in ((caption, 4), (image, 3)):  # the query image is no result
    marked = [one["path"] for one in answer["results"] if one["correct"]]
    assert len(marked) == correct and all(int(path[-5]) % 3 == 0 for path in marked)
  assert not any("correct" in one for one in words["results"])
  with Image.open(tmp_path / "s.png") as sheet:
    assert (22, 163, 74) in {color for _, color in sheet.convert("RGB").getcolors(2**24)}
  assert search_cli.main(ask[:4]) == 0
  lines = capsys.readouterr().out.splitlines()[1:]
  assert sum(line.endswith("  correct") for line in lines) == 4
  assert search_cli.main(["index", *flags]) == 0  # again, without annotations: they stay
  assert search_cli.main([*ask[:4], "--together"]) == 0
  assert capsys.readouterr().out.count("  correct") == 4


def test_mistakes_end_in_one_line(known_run, image_folder, tmp_path, capsys):
  def fails(*argv):
    assert search_cli.main([str(part) for part in argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error

  assert "no such folder" in fails("index", "--run", known_run, "--images", "nowhere", "--out", "i")
  arguments = ("--images", image_folder, "--out", tmp_path / "x")
  assert "--run=" in fails("index", "--run", tmp_path, *arguments)
  assert "--batch_size=0" in fails("index", "--run", known_run, *arguments, "--batch_size", 0)
  assert "--images" in fails("index", "--run", known_run, "--out", tmp_path / "x")
  assert "gone.json" in fails("index", "--run", known_run, *arguments, "--annotations", "gone.json")
  assert "make an index first" in fails("query", "--index", tmp_path, "red")
  for flag, value in (("top", 0), ("top", 200), ("port", 0), ("port", -1), ("port", 70000)):
    assert f"--{flag}={value}: give 1 to" in fails("serve", "--index", tmp_path, f"--{flag}", value)
  for name in ("https://photos.example", "photos.example:80", ""):
    assert f"--name={name}: give a host's" in fails("serve", "--index", tmp_path, f"--name={name}")
  for flag in ("images", "out"):
    flags = {"images": image_folder, "out": tmp_path / "x"} | {flag: "~nobody-here/x"}
    words = [word for name, path in flags.items() for word in (f"--{name}", path)]
    assert f"--{flag}=~nobody-here/x: no home" in fails("index", "--run", known_run, *words)
  long = "a" * 300
  assert f"--run={long}: cannot be read" in fails("index", "--run", long, *arguments)
  assert f"--index={long}/index.json: cannot be read" in fails("query", "--index", long, "red")
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
  assert "--sheet=.: cannot be drawn" in fails("query", "--index", out, "red", "--sheet", ".")
  for place in (".", ""):
    line = fails("export", "--index", out, "--format", "npy", "--out", place)
    assert "--out=.: cannot be written" in line and "Is a directory" in line
  assert f"--run={long}: cannot be read" in fails("query", "--index", out, "red", "--run", long)
  typo = tmp_path / "gone"
  assert f"--run={typo}: no such folder" in fails("query", "--index", out, "red", "--run", typo)
  assert "description is empty" in fails("query", "--index", out, "red", " ")
  about = files.unsealed(json.loads((out / "index.json").read_text()))
  of_another = files.sealed(about | {"model_digest": "another"})
  (out / "index.json").write_text(json.dumps(of_another))
  assert "another model" in fails("query", "--index", out, "red")


@pytest.mark.parametrize("flag", ["--image", "--less_like"])
def test_a_query_does_not_wait_for_a_pipe(known_run, image_folder, tmp_path, capsys, flag):
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "i").mkdir()
  ask = ["query", "--index", str(tmp_path / "i"), "red", flag, str(tmp_path / "pipe")]
  assert search_cli.main(ask) == 2
  assert "pipe is not a regular file" in capsys.readouterr().err


def test_many_descriptions_are_one_search(known_run, image_folder, tmp_path, capsys, monkeypatch):
  out = str(tmp_path / "i")
  flags = ["--run", str(known_run), "--images", str(image_folder), "--out", out]
  assert search_cli.main(["index", *flags]) == 0
  texts = [f"a person with number {number}" for number in range(70)]
  (tmp_path / "queries.txt").write_text("\n".join(texts))
  capsys.readouterr()
  searched = []
  search = ExactGallery.search
  monkeypatch.setattr(
    ExactGallery, "search", lambda self, q, *args: searched.append(len(q)) or search(self, q, *args)
  )
  ask = ["query", "--index", out, "--json", "--top", "3", "--file", str(tmp_path / "queries.txt")]
  assert search_cli.main(ask) == 0
  answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert searched == [64, 6] and [answer["query"] for answer in answers] == texts
  assert search_cli.main([*ask[:-2], texts[69]]) == 0
  assert json.loads(capsys.readouterr().out) == answers[69]


def test_compacting(known_run, image_folder, tmp_path, capsys):
  flags = ["--run", str(known_run), "--images", str(image_folder), "--out", str(tmp_path / "i")]
  assert search_cli.main(["index", *flags]) == 0
  (image_folder / "a" / "1.png").unlink()
  assert search_cli.main(["index", *flags, "--compact"]) == 0
  assert "1 row of gone and changed images removed from the disk" in capsys.readouterr().out
  assert b"a/1.png" not in (tmp_path / "i" / "data1" / "paths" / "text.npy").read_bytes()
  assert search_cli.main(["query", "--index", str(tmp_path / "i"), "a red coat"]) == 0
  assert len(capsys.readouterr().out.splitlines()) == 10
  flags[-1] = "gs://bucket/i"
  assert search_cli.main(["index", *flags, "--compact"]) == 2
  assert "--compact: --out=gs://bucket/i is in a bucket" in capsys.readouterr().err


def test_control_characters_are_not_printed(known_run, image_folder, tmp_path, capsys):
  (image_folder / "a" / "1.png").rename(image_folder / "a" / "\x1b[31m\n.png")
  (image_folder / "a" / "broken.jpg").rename(image_folder / "a" / "broken\x1b.jpg")
  flags = ["--run", str(known_run), "--images", str(image_folder), "--out", str(tmp_path / "i")]
  assert search_cli.main(["index", *flags]) == 0
  assert "skipped 'a/broken\\x1b.jpg'" in capsys.readouterr().out
  assert search_cli.main(["query", "--index", str(tmp_path / "i"), "a red\x1b]0;\n coat"]) == 0
  output = capsys.readouterr().out
  assert "\x1b" not in output and len(output.splitlines()) == 11
  assert output.startswith("a red\\x1b]0;\\n coat\n") and "\\x1b[31m\\n.png" in output


def test_folders_with_special_characters(known_run, image_folder, tmp_path, capsys):
  """The printed command can be pasted into a shell."""
  strange = tmp_path / 'it\'s a]b #1 %20 [x] "q"'
  strange.mkdir()
  images, out, run = strange / "images", strange / "index", strange / "run"
  image_folder.rename(images)
  run.symlink_to(known_run)
  flags = ["--run", str(run), "--images", str(images), "--out", str(out)]
  assert search_cli.main(["index", *flags]) == 0
  command = shlex.split(capsys.readouterr().out.splitlines()[-1])
  sheet = strange / "sheet.png"
  assert search_cli.main([*command[command.index("query") :], "--sheet", str(sheet)]) == 0
  first = capsys.readouterr().out.splitlines()[1]
  assert os.path.isfile(shlex.split(first)[2]) and sheet.is_file()
  exported = strange / "features.npy"
  flags = ["--index", str(out), "--format", "npy", "--out", str(exported)]
  assert search_cli.main(["export", *flags]) == 0 and exported.is_file()


@pytest.mark.integration
def test_names_that_the_terminal_cannot_show(known_run, image_folder, tmp_path):
  """Undecodable names of files, on terminals that know UTF-8 or only ASCII."""
  (image_folder / "a" / "1.png").rename(image_folder / os.fsdecode(b"caf\xe9.png"))
  (image_folder / "a" / "3.png").rename(image_folder / "zürich.png")
  run = [sys.executable, "-m", "dgia_jax.search"]
  flags = ["--run", known_run, "--images", image_folder, "--out", tmp_path / "i"]
  for encoding in ("utf-8", "ascii"):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    queries = ["query", "--index", tmp_path / "i", "caf\udce9"]
    queries += ["--image", image_folder / "b/c/2.png"]
    for arguments in (["index", *flags], queries, [*queries, "--json"]):
      done = subprocess.run([*run, *arguments], env=environment, capture_output=True, check=False)
      assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-2000:]
    for line in done.stdout.decode(encoding).splitlines():
      paths = [result["path"] for result in json.loads(line)["results"]]
      assert all(map(os.path.isfile, paths)) and len(paths) >= 9


def test_types_that_cannot_be_read_are_counted(known_run, image_folder, tmp_path, capsys):
  for name in ("1.heic", "2.HEIC", "b/c/3.cr2"):
    (image_folder / name).write_text("")
  flags = ["--run", str(known_run), "--images", str(image_folder), "--out", str(tmp_path / "i")]
  assert search_cli.main(["index", *flags]) == 0
  assert "3 files of types that cannot be read here: .heic 2, .cr2 1" in capsys.readouterr().out


def test_every_command_and_format_exists():
  """`__main__` names them without importing them."""
  assert set(search_cli.EXPORT_FORMATS) == set(export.FORMATS)
  flags = {
    "index": ["--run", "R", "--images", "F", "--out", "O"],
    "query": ["--index", "I"],
    "serve": ["--index", "I"],
    "export": ["--index", "I", "--format", "npy", "--out", "O"],
  }
  for name, needed in flags.items():
    assert callable(getattr(commands, search_cli.parse([name, *needed]).command))


def test_a_tilde_is_a_home_folder(known_run, image_folder, tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "run").symlink_to(known_run)
  argv = ["index", "--run=~/run", f"--images={image_folder}", "--out=~/i"]
  assert search_cli.main(argv) == 0
  assert json.loads((tmp_path / "i" / "index.json").read_text())["model"] == str(tmp_path / "run")
  ask = ["query", "--index=~/i", "--run=~/run", "a red coat", "--sheet=~/s.png"]
  assert search_cli.main(ask) == 0 and (tmp_path / "s.png").exists()
  assert search_cli.main(["export", "--index=~/i", "--format=npy", "--out=~/f.npy"]) == 0
  assert (tmp_path / "f.npy").exists()
  capsys.readouterr()


def test_an_index_in_a_bucket_is_called_by_its_address(gcs, tmp_path):
  url, folder = f"{gcs.url}/index", write_index(tmp_path / "index", ["a.png", "b.png"])
  for path in folder.rglob("*.*"):
    gcs.put(f"{url}/{path.relative_to(folder)}", path.read_bytes())
  with pytest.raises(UserError, match=f"--index={url} was made with another model"):
    commands.open_index(url, "mini")
  copy = remote.local_copy(url, "--index")
  (copy / "gone.json").write_text("{")
  message = rf"^--index: {url}/gone\.json is damaged.*; delete its copy, {copy}, and run"
  with pytest.raises(UserError, match=message) as error:
    commands.open_index(url, "mini")
  assert "\n" not in str(error.value)
