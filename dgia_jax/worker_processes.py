"""The processes that decode images, as they see themselves.

They are started afresh and import the program's main script again. A script that does its work
without `if __name__ == "__main__":` would do it again in each of them.
"""

import multiprocessing
import os

NAME = "grain-process-prefetch"  # how grain's names of these processes begin
UNGUARDED_EXIT = 86  # exit code of a worker whose main script would start the work again


def leave_if_work_is_repeated() -> None:
  """Ends this process if it is a worker that is still importing the main script.

  To be called where a script can start work. Whoever started the worker explains its exit code.
  """
  process = multiprocessing.current_process()
  if process.name.startswith(NAME) and getattr(process, "_inheriting", False):
    os._exit(UNGUARDED_EXIT)
