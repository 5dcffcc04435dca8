"""The one door to git: no program runs that a repository names.

Git takes programs from a repository's own configuration: a monitor, hooks, filters, a transport, a credential helper.
Some are off in each call. Of a repository that is not the user's project, such as a clone inside it or one that data is
read from, `guards` overrule all others: a key that names a program has the user's own value, global or system, or none.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from orchestrator.errors import RequestError
from orchestrator.system.processes import run

_ALWAYS = (
    "core.fsmonitor=false",  # a program
    "core.hooksPath=/dev/null",  # post-index-change would run
    "core.splitIndex=false",  # a split index is written into the real .git
    "core.safecrlf=false",
    "core.looseCompression=0",
    "core.fsync=none",  # temporary objects
    "core.pager=cat",
    "core.alternateRefsCommand=",
    "protocol.ext.allow=never",
    "maintenance.auto=false",
)
_INHERITED = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_QUARANTINE_PATH",
    "GIT_LITERAL_PATHSPECS", "GIT_GLOB_PATHSPECS", "GIT_NOGLOB_PATHSPECS", "GIT_ICASE_PATHSPECS",
    "GIT_EXTERNAL_DIFF",
)  # fmt: skip
"""What git sets for its hooks: they would lead to another repository than the one that is asked for."""

_PROGRAMS = re.compile(
    r"core\.(sshcommand|gitproxy|askpass|editor)"
    r"|filter\..*\.(clean|smudge|process|required)"
    r"|diff\.(external|.*\.(command|textconv))"
    r"|(merge\..*\.driver|hook\..*\.command|remote\..*\.(uploadpack|receivepack|vcs))"
    r"|gpg\.(.*\.)?(program|defaultkeycommand)"
    r"|credential\.(.*\.)?helper",
    re.DOTALL,
)
"""Keys that name a program, as git writes them: the first and the final part in lower case."""

_NONE = {"required": "false", "uploadpack": "git-upload-pack", "receivepack": "git-receive-pack"}
"""What stands for no program of one's own, where empty text does not."""


def trust(told: str) -> str:
    """Return how to have git trust a repository of another owner, if that is what it complains of; else nothing."""
    found = re.search(r"dubious ownership in repository at '(.+?)'(?=\nTo add|\s*\Z)", told, re.DOTALL)
    if found is None:
        return ""
    return f"if you trust its owner: git config --global --add safe.directory {shlex.quote(found[1])}"


def git(
    folder: Path,
    *words: str,
    settings: Iterable[str] = (),
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
) -> bytes:
    """Return what git says in a folder; `settings` come after those that hold always. Raises ProgramError."""
    options = [word for setting in (*_ALWAYS, *settings) for word in ("-c", setting)]
    inherited = {name: value for name, value in os.environ.items() if name not in _INHERITED}
    own = {"LC_ALL": "C", **(env or {})}
    return run(["git", *options, *words], cwd=folder, env=own, inherited=inherited, stdin=stdin)


def guards(folder: Path) -> tuple[str, ...]:
    """Return the settings with which a repository names no program; the user's own files still may.

    Raises ProgramError where git cannot read the configuration, RequestError where a key cannot be overruled.
    """
    *words, _ = os.fsdecode(git(folder, "config", "--list", "-z", "--show-scope")).split("\0")
    entries = [(scope, *each.partition("\n")[::2]) for scope, each in zip(words[::2], words[1::2], strict=True)]
    named = [entry for entry in entries if _PROGRAMS.fullmatch(entry[1])]
    foreign = dict.fromkeys(key for scope, key, _ in named if scope in {"local", "worktree"})
    own = [(key, value) for scope, key, value in named if scope not in {"local", "worktree"}]
    if odd := [key for key in foreign if "=" in key]:
        raise RequestError(
            f"the repository at {folder} sets {odd[0]!r}",
            why="that names a program, and git cannot overrule a name with `=` in it",
            fix="remove it from the repository's configuration",
        )
    none = [f"{key}={_NONE.get(key.rpartition('.')[2], '')}" for key in foreign]  # empties a list of helpers, too
    helpers = any(key.startswith("credential.") for key in foreign)
    again = [f"{key}={value}" for key, value in own if key in foreign or (helpers and key.startswith("credential."))]
    return (*none, *again)
