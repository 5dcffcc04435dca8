"""The program that asks a sampler and a pruner for a first trial: it imports what they name, which may be the user's.

It reads `{"search", "search_path"}` as JSON from standard input, and writes one JSON object: `{}`, or what is wrong.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO


def _answer(question: dict[str, Any]) -> dict[str, str]:
    from orchestrator.errors import ConfigError
    from orchestrator.search.study import check
    from orchestrator.spec.search import Search

    try:
        check(Search.from_json(question["search"]))
    except ConfigError as error:
        return {"what": error.what, "why": error.why, "fix": error.fix}
    return {}


def _main(answers: TextIO) -> None:
    question = json.load(sys.stdin)
    path = question["search_path"]
    sys.path[:] = [*path, *(entry for entry in sys.path if entry not in path)]
    answers.write(json.dumps(_answer(question)))
    answers.flush()
    os._exit(0)  # whatever threads and exit handlers the imports left behind are none of our business


if __name__ == "__main__":
    # What the imports print goes to standard error: standard output carries the answer alone.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        _main(answers)
