"""The entry point of the command line: `orch`, and `python -m orchestrator`.

Imports wait until an interrupt, or a stream that cannot be written, can be reported without a traceback.
"""

import os
import sys


def main() -> int:
    """Run the command of this process and return its exit status: 130 if it was interrupted."""
    try:
        _open_streams()
        from orchestrator.cli import main as command

        status = command()
        sys.stdout.flush()
    except BrokenPipeError:
        status = 0  # the reader has closed the pipe
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        if not _was_interrupted(error):
            raise
        status = 130
    return status if _close_output() else status or 1


def _open_streams() -> None:
    """Make sure that all three streams are open: otherwise the next opened file would get a closed one's number.

    Characters that their encoding cannot represent are escaped.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _was_interrupted(error: BaseException | None) -> bool:
    """Return whether Ctrl-C caused an error: some libraries turn it into another error while they are imported."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _close_output() -> bool:
    """Flush standard output, so that Python does not fail to at exit; return False if that is impossible."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return isinstance(error, BrokenPipeError)
    return True


if __name__ == "__main__":
    sys.exit(main())
