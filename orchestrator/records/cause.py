"""Which line of what a job printed says why it failed. Pure, and a guess: the whole output is kept beside it."""

from __future__ import annotations

import re

_ABOUT_NOTHING = re.compile(
    r"^.{0,60}?\b(INFO|DEBUG|NOTSET|WARNING)\b"  # of a library's logging: `submitit INFO (...) - Starting with ...`
    r"|^srun: (error: .*: tasks? [\d,-]+: |Job step aborted|Terminating |launch/)"  # that it ended, which is known
    r"|^slurmstepd: error: \*\*\* |^orch: "
)
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)(: |$)")


def cause(output: str) -> str:
    """Return the last exception in an output, or its last line that is not a routine message, or nothing."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip() and not _ABOUT_NOTHING.search(line)]
    exceptions = [line for line in lines if _EXCEPTION.match(line)]
    return (exceptions or lines or [""])[-1]
