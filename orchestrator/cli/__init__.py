"""The command line. Results go to standard output, talk to standard error.

Exit status: 0 ok; 1 a run or the cluster failed; 2 the request was wrong and nothing was done.
    parser.py      the verbs and their options
    verbs.py       what each verb does
    render.py      records -> text
    watch.py       progress, live
    confirm.py     the size of a launch, before it
    foreground.py  a background cluster's run in the terminal
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Sequence

from orchestrator.errors import OrchError, StateError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    from orchestrator.cli.parser import parse

    gc.set_threshold(100_000, 10, 10)  # records are many and no cycles: looking through them took a tenth of `status`
    arguments = parse(sys.argv[1:] if argv is None else list(argv))
    level = logging.INFO if arguments.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    try:
        status: int = arguments.verb(arguments)
        sys.stdout.flush()
    except OrchError as error:
        _explain(error)
        return error.exit_code
    except PermissionError as error:  # somebody else's folder: looked at, or acted on
        _explain(StateError(f"{error.filename}: {error.strerror}", fix="it is another user's: ask them, or use --runs"))
        return StateError.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _explain(error: OrchError) -> None:
    from orchestrator.cli.render import paint

    why = f": {error.why}" if error.why else ""
    print(paint(f"error: {error.what}{why}", "red", sys.stderr), file=sys.stderr)
    if error.fix:
        print(f"fix: {error.fix}", file=sys.stderr)
