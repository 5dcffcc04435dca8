"""The parameters that `@dataclass` generates from a class body. Only the standard library's dataclasses."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace

from orchestrator.config.targets.annotation import Qualified, accepts
from orchestrator.config.targets.signature import Kind, Parameter, Signature, UnsureError

DECORATOR = "dataclasses.dataclass"


def read(node: ast.ClassDef, qualified: Qualified, typed: Qualified) -> dict[str, Parameter | None]:
    """Return the fields of one class statement by name, in order; None for one with `init=False`.

    `typed` gives the full names of annotations, and only of those that are certain.
    """
    options = _options(next(n for n in node.decorator_list if qualified(n) == DECORATOR))
    if options.get("init", True) is not True:
        raise UnsureError(f"{node.name} has no generated __init__")
    keyword_only = options.get("kw_only", False) is True
    fields: dict[str, Parameter | None] = {}
    for statement in node.body:
        _refuse_unusual(node, statement, fields)
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        annotation = _annotation(statement.annotation, qualified)
        if annotation.endswith("KW_ONLY"):
            keyword_only = True
        elif not annotation.endswith("ClassVar"):
            name = statement.target.id
            field = _field(name, statement.value, keyword_only, qualified)
            fields[name] = field and replace(field, accepts=accepts(statement.annotation, typed, statement.value))
    return fields


def signature(fields: Mapping[str, Parameter | None]) -> Signature:
    """Return the signature of the generated `__init__`."""
    taken = [parameter for parameter in fields.values() if parameter is not None]
    taken.sort(key=lambda parameter: parameter.kind == "keyword_only")
    return Signature(parameters=tuple(taken))


def _refuse_unusual(node: ast.ClassDef, statement: ast.stmt, fields: Mapping[str, object]) -> None:
    reassigned = isinstance(statement, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id in fields for target in statement.targets
    )
    if reassigned or isinstance(statement, ast.If | ast.Try | ast.For | ast.While | ast.With):
        raise UnsureError(f"the fields of {node.name} are decided at run time")


def _annotation(node: ast.expr, qualified: Qualified) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.partition("[")[0].strip()
    return qualified(node)


def _field(name: str, value: ast.expr | None, keyword_only: bool, qualified: Qualified) -> Parameter | None:
    required = value is None
    if isinstance(value, ast.Call) and qualified(value) == "dataclasses.field":
        options = _options(value)
        if options.get("init", True) is not True:
            return None
        keyword_only = options.get("kw_only", keyword_only) is True
        required = not {"default", "default_factory"} & set(options)
    kind: Kind = "keyword_only" if keyword_only else "positional_or_keyword"
    return Parameter(name=name, kind=kind, required=required)


def _options(node: ast.expr) -> dict[str, object]:
    """Return a call's keywords: constants as their value, anything else as the expression."""
    if not isinstance(node, ast.Call):
        return {}
    options: dict[str, object] = {}
    for keyword in node.keywords:
        value = keyword.value.value if isinstance(keyword.value, ast.Constant) else keyword.value
        if keyword.arg is None or (keyword.arg in {"init", "kw_only"} and not isinstance(value, bool)):
            raise UnsureError("options that are decided at run time")
        options[keyword.arg] = value
    return options
