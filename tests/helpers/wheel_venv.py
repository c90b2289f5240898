"""The project as a user installs it: a wheel in an environment of its own, away from the clone."""

import pathlib
import shutil
import subprocess
import sys
import venv

from tests.helpers.paths import ROOT


def install(folder: pathlib.Path) -> pathlib.Path:
  """Builds the wheel and installs it; returns the environment's folder of programs.

  The environment sees the packages of the one that runs the tests, so nothing is downloaded.
  """
  source = folder / "source"  # a copy: the build leaves files beside what it reads
  for name in ("dgia_jax", "configs"):
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / name, source / name, ignore=ignored)
  for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source / name)
  build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
  subprocess.run([*build, "--wheel-dir", str(folder), str(source)], check=True, timeout=300)
  (wheel,) = folder.glob("dgia_jax-*.whl")
  environment = folder / "environment"
  venv.create(environment, with_pip=False)
  (packages,) = environment.glob("lib/python*/site-packages")
  ours = next(path for path in sys.path if path.endswith("site-packages"))
  (packages / "packages_of_the_tests.pth").write_text(ours + "\n")
  subprocess.run(
    [
      sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install",
      "--quiet", "--no-deps", "--no-index", "--force-reinstall", str(wheel),
    ],
    check=True, timeout=300,
  )  # fmt: skip
  return environment / "bin"
