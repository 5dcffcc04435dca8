"""The errors of this package; the tree is the contract.

    OrchError                 every expected error: what happened, why, and what to do
    +-- RequestError          the request was wrong and nothing was done: change it        (exit 2)
    |   +-- ConfigError       ... in a YAML file or an override
    +-- ClusterError          the cluster refused, or did not answer: try again later      (exit 1)
    +-- DataError             a data version cannot be staged or is damaged                (exit 1)
    +-- StateError            files in runs/ are unreadable, unwritable or not the user's  (exit 1)
    +-- TrackingError         the tracking store cannot be used                            (exit 1)

Any other exception that leaves the package is a bug in `orch` and shows its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable


class OrchError(Exception):
    """An expected error.

    `what` happened (with the value given), `why` (the rule), and the `fix` (the next command or edit).
    """

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.why, self.fix = what, why, fix

    def __str__(self) -> str:
        lines = [self.what if not self.why else f"{self.what}: {self.why}"]
        if self.fix:
            lines.append(f"fix: {self.fix}")
        return "\n".join(lines)


class RequestError(OrchError):
    """The request was wrong and nothing was done."""

    exit_code = 2


class ConfigError(RequestError):
    """A YAML file or an override is wrong."""


class ClusterError(OrchError):
    """The cluster refused a request, or did not answer."""


class DataError(OrchError):
    """A data version cannot be staged, or its bytes are damaged."""


class StateError(OrchError):
    """Files in runs/ are unreadable, unwritable or belong to another user."""


class TrackingError(OrchError):
    """The tracking store cannot be used."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return a hint such as ` (did you mean 'lr'?)`, or an empty string when nothing is close."""
    close = closest(word, choices)
    return f" (did you mean {close!r}?)" if close else ""


def closest(word: str, choices: Iterable[str]) -> str:
    """Return the choice that a word was probably meant to be; empty if none is close."""
    import difflib

    return next(iter(difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)), "")
