"""The plain values that a simple annotation allows.

Simple are int, float, bool, str and None, `Optional`, `Union` and `|` of those, `Annotated`, and `Literal` of such
values. Any other annotation allows any value: a value that passes is not proved right.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

Qualified = Callable[[ast.expr], str]
"""Returns the full name of an expression as the module's imports spell it."""

_PLAIN = {"builtins.int": "int", "builtins.float": "float", "builtins.bool": "bool", "builtins.str": "str"}
_NONE = {"builtins.None", "builtins.NoneType", "types.NoneType"}
_FORMS = {
    f"{module}.{name}": name
    for module in ("typing", "typing_extensions")
    for name in ("Optional", "Union", "Literal", "Annotated")
}
_WORDS = {"int": "an int", "float": "a float", "bool": "true or false", "str": "text", "NoneType": "null"}
_UNKNOWN = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepts:
    """The plain values that a parameter takes: all values of `types` (by name), and the single ones in `literals`."""

    types: tuple[str, ...] = ()
    literals: tuple[object, ...] = ()

    def admits(self, value: object) -> bool:
        """Return whether a value can be right. An int may stand for a float; a bool is neither."""
        kind = type(value).__name__
        if kind in self.types or (kind == "int" and "float" in self.types):
            return True
        if isinstance(value, Mapping) and "_target_" in value:
            return True  # the type that it builds is unknown
        return any(type(value) is type(literal) and value == literal for literal in self.literals)

    def __str__(self) -> str:
        words = [repr(literal) for literal in self.literals if literal is not None]
        words += [_WORDS[kind] for kind in self.types]
        return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def accepts(node: ast.expr | None, qualified: Qualified, default: ast.expr | None = None) -> Accepts | None:
    """Return the values that an annotation allows; None if any value may be right.

    A default of None makes the annotation optional; a default that the annotation does not allow disproves it.
    """
    if node is None:
        return None
    found = _parse(node, qualified)
    value = _literal(default) if default is not None else None
    if found is None or (default is not None and value is _UNKNOWN):
        return found
    if default is not None and value is None:
        return _union([found, Accepts(types=("NoneType",))])
    return found if default is None or found.admits(value) else None


def accepts_text(annotation: str, default: str | None) -> Accepts | None:
    """Return the values that an annotation allows, given as `inspect` writes it, with its default as `repr`."""
    try:
        node = ast.parse(annotation, mode="eval").body
        value = ast.parse(default, mode="eval").body if default is not None else None
    except (SyntaxError, ValueError, RecursionError):
        return None
    return accepts(node, _as_inspect_writes, value)


def _as_inspect_writes(node: ast.expr) -> str:
    """Return the full name of a name that `inspect` writes without its module: builtins, and names of `typing`."""
    name = ast.unparse(node)
    if name in {"Optional", "Union", "Literal", "Annotated"}:
        return f"typing.{name}"
    return name if "." in name else f"builtins.{name}"


def _parse(node: ast.expr, qualified: Qualified) -> Accepts | None:
    match node:
        case ast.Constant(value=None):
            return Accepts(types=("NoneType",))
        case ast.Constant(value=str(text)):
            return _parse_text(text, qualified)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _union(_parse(part, qualified) for part in (left, right))
        case ast.Subscript(value=form, slice=inside):
            return _parse_form(_FORMS.get(qualified(form), ""), inside, qualified)
        case ast.Name() | ast.Attribute():
            return _parse_name(qualified(node))
    return None


def _parse_text(text: str, qualified: Qualified) -> Accepts | None:
    try:
        return _parse(ast.parse(text.strip(), mode="eval").body, qualified)
    except (SyntaxError, ValueError):
        return None


def _parse_name(name: str) -> Accepts | None:
    if name in _NONE:
        return Accepts(types=("NoneType",))
    return Accepts(types=(_PLAIN[name],)) if name in _PLAIN else None


def _parse_form(form: str, inside: ast.expr, qualified: Qualified) -> Accepts | None:
    parts: Sequence[ast.expr] = inside.elts if isinstance(inside, ast.Tuple) else [inside]
    match form:
        case "Literal":
            values = [_literal(part) for part in parts]
            return None if _UNKNOWN in values else Accepts(literals=tuple(values))
        case "Union":
            return _union(_parse(part, qualified) for part in parts)
        case "Optional":
            return _union([_parse(inside, qualified), Accepts(types=("NoneType",))])
        case "Annotated":
            return _parse(parts[0], qualified)
    return None


def _union(parts: Iterable[Accepts | None]) -> Accepts | None:
    found = list(parts)
    known = [part for part in found if part is not None]
    if len(known) < len(found):
        return None
    return Accepts(
        types=tuple(dict.fromkeys(kind for part in known for kind in part.types)),
        literals=tuple(literal for part in known for literal in part.literals),
    )


def _literal(node: ast.expr) -> object:
    """Return a plain constant; _UNKNOWN for anything else."""
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
    return _UNKNOWN
