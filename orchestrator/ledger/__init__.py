"""The records on disk: launches published whole, attempts claimed once, events appended by one writer.

`mkdir` and `rename` are the only locks (atomic on NFS too); nothing here relies on flock.
Reading never writes. Torn or NUL lines at the end of a file that a dying process left are skipped.

    launches   what was asked for: header, plan, base configs
    attempts   claims, events, the index
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
    read_claim,
    read_events,
    write_observed,
)
from orchestrator.ledger.files import check_private, make_private, replace_text
from orchestrator.ledger.launches import (
    SILENT_SECONDS,
    Launch,
    planned,
    publish,
    read_config,
    read_launch,
    read_line,
    read_lines,
    submitting,
)
from orchestrator.ledger.records import Ledger, read
from orchestrator.ledger.settle import settle

__all__ = [
    "SILENT_SECONDS", "EventWriter", "Launch", "Ledger", "check_private", "claim_attempt", "job_output", "make_private",
    "mark", "marks", "planned", "publish", "read", "read_attempt", "read_claim", "read_config", "read_events",
    "read_launch", "read_line", "read_lines", "replace_text", "settle", "submitting", "write_observed",
]  # fmt: skip
