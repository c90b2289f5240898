"""The Dockerfile agrees with the package: its files, extras, Python version and command."""

import fnmatch
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from dgia_jax import main as run_main
from tests.helpers.paths import ROOT

DOCKERFILE = ROOT / "Dockerfile"


def instructions():
  """(keyword, arguments) of every instruction, continued lines joined."""
  text = re.sub(r"(?m)^#.*\n", "", DOCKERFILE.read_text()).replace("\\\n", " ")
  lines = (line.strip() for line in text.splitlines())
  return [tuple(line.split(maxsplit=1)) for line in lines if line]


def arguments_of(keyword):
  return [arguments for word, arguments in instructions() if word == keyword]


def ignored(path):
  """Whether .dockerignore keeps a file of the root out: its last matching line decides."""
  outcome = False
  for line in (ROOT / ".dockerignore").read_text().split():
    if fnmatch.fnmatch(path, line.removeprefix("!")):
      outcome = not line.startswith("!")
  return outcome


def test_every_copied_file_exists_and_reaches_the_build():
  copied = [source for line in arguments_of("COPY") for source in line.split()[:-1]]
  assert {"dgia_jax", "configs", "setup.py"} <= set(copied)
  for source in copied:
    assert (ROOT / source).exists(), source
    assert not ignored(source), source
  for private in ("runs", ".venv", ".git", "data"):
    assert ignored(private)


def test_whatever_the_build_of_the_package_reads_is_copied():
  copied = {source for line in arguments_of("COPY") for source in line.split()[:-1]}
  setup = (ROOT / "setup.py").read_text()
  files = {name for name in re.findall(r'"([\w.]+)"', setup) if (ROOT / name).is_file()}
  assert files <= copied and "LICENSE" in files


def test_extras_python_and_command_are_those_of_the_package():
  setup = (ROOT / "setup.py").read_text()
  examples = re.findall(r"EXTRAS=([\w,]+)", DOCKERFILE.read_text())
  assert examples == ["gpu"]
  for extra in ("gpu", "serve"):
    assert f'"{extra}": [' in setup, extra
  (base,) = arguments_of("FROM")
  minimum = re.search(r'python_requires=">=3\.(\d+)"', setup)[1]
  assert int(re.fullmatch(r"python:3\.(\d+)-slim", base)[1]) >= int(minimum)
  assert arguments_of("ENTRYPOINT") == ['["dgia"]'] and '"dgia = dgia_jax.__main__:main"' in setup
  assert tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]


def test_the_commands_in_its_comments_are_real():
  text = DOCKERFILE.read_text().replace("\\\n#", " ")
  runs = [shlex.split(line) for line in re.findall(r"(?m)^#\s+(docker run .*)$", text)]
  assert len(runs) == 2
  for words in runs:
    name, *arguments = words[next(n for n, word in enumerate(words) if "dgia_jax" in word) + 1 :]
    assert name in run_main.REQUIRED
    config = arguments[arguments.index("--config") + 1].split(":")[0]
    assert (ROOT / "configs" / f"{config}.py").exists()


def test_installs_are_pinned():
  installs = [line for line in arguments_of("RUN") if "pip install" in line]
  assert len(installs) == 2
  assert all("--constraint requirements.txt" in line for line in installs)


@pytest.mark.slow
def test_the_pinned_versions_can_be_installed_together():
  """Needs a package index; nothing is installed."""
  line = [sys.executable, "-m", "pip", "install", "--constraint", "requirements.txt"]
  for package in (".", ".[gpu]", ".[serve,parquet,siglip]"):
    command_line = [*line, package, "--dry-run", "--ignore-installed", "--quiet"]
    subprocess.run(command_line, cwd=ROOT, check=True)
