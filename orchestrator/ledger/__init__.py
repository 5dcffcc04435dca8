"""The records on disk: launches published whole, attempts claimed once, events appended by one writer.

`mkdir` and `rename` are the only locks (atomic on NFS too); nothing here relies on flock.
Reading writes nothing but the user's cache. What a dying process left torn or NUL at the end of a file is skipped.

    launches   what was asked for: header, plan, base configs
    searches   adaptive sweeps: what a launch keeps of one, what a trial was given
    packs      which tasks of a launch share a job
    attempts   claims, events, the index
    ended      what can never change any more, kept in the user's cache
    records    all of it together
    settle     writing down what became of attempts that ended without a word
    files      private folders, whole texts
"""

from orchestrator.ledger.attempts import (
    EventWriter,
    claim_attempt,
    job_output,
    mark,
    marks,
    read_attempt,
    read_attempts,
    read_claim,
    read_events,
    write_observed,
)
from orchestrator.ledger.files import check_private, make_private, names, read_json, replace_text, writing
from orchestrator.ledger.launches import (
    SILENT_SECONDS,
    Launch,
    braked,
    planned,
    publish,
    read_config,
    read_launch,
    read_line,
    read_lines,
    read_some_lines,
    submitting,
)
from orchestrator.ledger.packs import Packs, read_packs
from orchestrator.ledger.records import Ledger, Reader, read
from orchestrator.ledger.searches import filled, read_trial, read_values, template_at, write_values
from orchestrator.ledger.settle import settle, write_replaced

__all__ = [
    "SILENT_SECONDS", "EventWriter", "Launch", "Ledger", "Packs", "Reader", "braked", "check_private",
    "claim_attempt", "filled", "job_output", "make_private", "mark", "marks", "names", "planned", "publish", "read",
    "read_attempt", "read_attempts", "read_claim", "read_config", "read_events", "read_json", "read_launch",
    "read_line", "read_lines", "read_packs", "read_some_lines", "read_trial", "read_values",
    "replace_text", "settle", "submitting", "template_at", "write_observed", "write_replaced", "write_values",
    "writing",
]  # fmt: skip
