"""The parameters of a callable: names, kinds, whether required, and the plain values allowed. No defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.config.targets.annotation import Accepts

Kind = Literal["positional_only", "positional_or_keyword", "keyword_only"]


class UnsureError(Exception):
    """The source is not enough: Python itself has to be asked."""


class AbsentError(Exception):
    """`owner` (a module or a class; empty: the search path) has no `name`; `known` are the names it has."""

    def __init__(self, owner: str, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"{owner}.{name}")
        self.owner, self.name, self.known = owner, name, known


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One named parameter. `accepts` is None where any value may be right."""

    name: str
    required: bool
    kind: Kind = "positional_or_keyword"
    accepts: Accepts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The parameters of a target; `self` and `cls` are already removed."""

    parameters: tuple[Parameter, ...] = ()
    var_positional: bool = False
    var_keyword: bool = False

    @property
    def positional(self) -> tuple[Parameter, ...]:
        return tuple(p for p in self.parameters if p.kind != "keyword_only")

    @property
    def keywords(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.parameters if p.kind != "positional_only")

    def bound(self) -> Signature:
        """Return the signature of the method once its first argument is bound."""
        first = self.positional[:1]
        return Signature(
            parameters=tuple(p for p in self.parameters if p not in first),
            var_positional=self.var_positional,
            var_keyword=self.var_keyword,
        )
