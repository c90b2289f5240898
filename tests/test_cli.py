"""Programs end with one line on stderr and the right exit code."""

import errno
import os
import subprocess
import sys

import pytest

from dgia_jax import cli
from dgia_jax.errors import UserError
from tests.helpers.paths import ROOT


def fail(error):
  raise error


@pytest.mark.parametrize("returned, code", [(None, 0), (0, 0), (1, 1)])
def test_run_returns_the_code_of_the_function(returned, code):
  assert cli.run(lambda value: value, returned) == code


def test_run_prints_a_user_error_as_one_line(capsys):
  assert cli.run(fail, UserError("--images=a\nb:\tno \x1b[31msuch folder")) == 2
  output = capsys.readouterr()
  assert output.out == ""
  assert output.err == "error: --images=a b: no \\x1b[31msuch folder\n"


def test_run_reports_an_interruption(capsys):
  assert cli.run(fail, KeyboardInterrupt(), interrupted="start it again to resume") == 130
  assert capsys.readouterr().err == "start it again to resume\n"


def test_run_survives_a_reader_that_closes_and_an_encoding_without_the_characters():
  program = "import sys; from dgia_jax import cli; sys.exit(cli.run(print, {!r}))"
  environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
  command = lambda text: [sys.executable, "-c", program.format(text)]
  options = dict(cwd=ROOT, env=environment, stderr=subprocess.PIPE)
  done = subprocess.run(command("红"), stdout=subprocess.PIPE, check=True, **options)
  assert done.stdout == b"\\u7ea2\n" and done.stderr == b""
  read_end, write_end = os.pipe()
  os.close(read_end)
  done = subprocess.run(command("text"), stdout=write_end, check=False, **options)
  os.close(write_end)
  assert done.returncode == 141 and done.stderr == b""


@pytest.mark.parametrize("text", ["short", "long" * 10_000])
def test_a_full_disk_is_one_line(text):
  program = f"import sys; from dgia_jax import cli; sys.exit(cli.run(print, {text!r}))"
  with open("/dev/full", "wb") as full:
    done = subprocess.run(
      [sys.executable, "-c", program], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, check=False
    )
  message = "error: the output cannot be written (No space left on device); free some space\n"
  assert (done.returncode, done.stderr.decode()) == (2, message)


def test_a_full_disk_names_the_file(capsys):
  error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/file")
  assert cli.run(fail, error) == 2
  assert capsys.readouterr().err.startswith("error: /data/file cannot be written (No space")


def test_run_lets_bugs_pass():
  with pytest.raises(PermissionError):
    cli.run(fail, PermissionError(errno.EACCES, "no"))
  with pytest.raises(ZeroDivisionError):
    cli.run(fail, ZeroDivisionError())


def test_mistakes_in_arguments_are_user_errors():
  parser = cli.ArgumentParser(prog="dgia data")
  commands = parser.add_subparsers()
  commands.add_parser("check").add_argument("--show", type=int)
  with pytest.raises(UserError, match="--show: invalid int value: 'x'; see dgia data check --help"):
    parser.parse_args(["check", "--show", "x"])


@pytest.mark.parametrize(
  "started, name", [("/bin/dgia", "dgia data"), ("/x/data/__main__.py", "python -m dgia_jax.data")]
)
def test_a_program_is_named_as_it_was_started(started, name, monkeypatch):
  monkeypatch.setattr("sys.argv", [started, "check"])
  assert cli.program("data") == name
