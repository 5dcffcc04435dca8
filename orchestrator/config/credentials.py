"""Values that look like credentials, and are shown as `***`; and `${secret:NAME}`, which names one by reference.

A credential is recognised by its key: `password`, `api_key`, `hf_token`. Numbers are not credentials
(`max_tokens: 512`), nor are the special tokens of a vocabulary. In a URL it is recognised by its position:
`https://user:PASSWORD@host`, `?token=TOKEN`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

MASK = "***"
REFERENCE = re.compile(r"\$\{secret:([A-Za-z_][A-Za-z0-9_]*)\}")
"""A reference to a secret in a frozen configuration; the node replaces it."""

_NAMES = re.compile(
    r"(?:^|[_-])(?:pass(?:word|wd|phrase)?|pwd|secret|token|credentials?|authorization|cookie"
    r"|(?:api|access|secret|private|auth)[_-]?key)$",
    re.IGNORECASE,
)
_URL_USER = re.compile(
    r"(?P<head>\b[a-z][a-z0-9+.-]*://)(?P<user>[^/\s@:\"'<>?#]*)(?P<word>:[^/\s@\"'<>]*)?@", re.IGNORECASE
)
_URL_QUERY = re.compile(r"(?P<key>(?<=[?&])[\w-]+)=(?P<word>[^&\s\"'<>#]+)")
_QUERY_KEYS = re.compile(r"^(?:sig|signature|x-amz-signature|x-amz-security-token|x-goog-signature)$", re.IGNORECASE)
_TOKEN_CHARACTERS = 20  # the tokens that forges issue are longer than user names
_ENTRY = re.compile(
    r"""(?<![\w.-])(?<!\$\{)(?P<key>["']?[\w.-]+["']?)(?P<colon>\s*:\s*)"""
    r"""(?P<value>\$\{[^}]*\}|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^,{}\[\]\s"'][^,{}\[\]]*)"""
)
_ASSIGNED = re.compile(r"""\b(?P<key>[A-Za-z_]\w*)=(?P<word>"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"'$;&|][^\s;&|]*)""")
_STANDS_FOR = "-secret-reference"
_VOCABULARY = re.compile(r"(?:^|_)(?:pad|eos|bos|unk|cls|sep|mask|start|end|image|special)_token$", re.IGNORECASE)


Redact = Callable[[Any], Any]
"""Returns a text, or a tree of texts, without the values that may not be written, as `Secrets.redact` does."""


def unchanged(node: Any) -> Any:
    """Return a tree unchanged; used where there are no secrets."""
    return node


def reference(name: str) -> str:
    """Return the reference to a secret in a frozen configuration."""
    return f"${{secret:{name}}}"


def is_credential(key: str, value: object) -> bool:
    """Return whether a value under a key (dotted, or its last part) looks like a credential itself."""
    return isinstance(value, str) and bool(value) and _names(key) and not _refers(value)


def _refers(value: str) -> bool:
    return REFERENCE.fullmatch(value) is not None or value.endswith(_STANDS_FOR)


@lru_cache(4096)
def _names(key: str) -> bool:
    last = key.rpartition(".")[2]
    return _NAMES.search(last) is not None and _VOCABULARY.search(last) is None


def masked(tree: object, at: str = "") -> Any:
    """Return a tree of mappings and lists with everything that looks like a credential masked.

    Everything below a key that names a credential is masked too, such as the choices of a sweep.
    """
    if isinstance(tree, Mapping):
        below = at if _names(at) else ""
        return {key: masked(value, below if below and key != "_target_" else str(key)) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [masked(value, at) for value in tree]
    if not isinstance(tree, str):
        return tree
    return MASK if is_credential(at, tree) else masked_url(tree)


def masked_url(text: str) -> str:
    """Return a text without the passwords and tokens of the URLs in it."""
    if "://" not in text:
        return text
    return _URL_QUERY.sub(_masked_query, _URL_USER.sub(_masked_user, text))


def _masked_user(found: re.Match[str]) -> str:
    user, word = found["user"], found["word"]
    if word and word != ":" and REFERENCE.fullmatch(word[1:]) is None:
        return f"{found['head']}{MASK if len(user) >= _TOKEN_CHARACTERS else user}:{MASK}@"
    return f"{found['head']}{MASK}@" if len(user) >= _TOKEN_CHARACTERS and "$" not in user else found[0]


def _masked_query(found: re.Match[str]) -> str:
    tells = _names(found["key"]) or _QUERY_KEYS.search(found["key"])
    return f"{found['key']}={MASK}" if tells and REFERENCE.fullmatch(found["word"]) is None else found[0]


def masked_script(text: str) -> str:
    """Return a shell script as it may be shown: the values of variables that name credentials are masked."""
    return masked_url(_ASSIGNED.sub(lambda found: f"{found['key']}={MASK}" if _names(found["key"]) else found[0], text))


def masked_override(text: str) -> str:
    """Return an override of the command line as it may be shown, also where its value is a mapping."""
    key, equals, value = text.partition("=")
    if not equals:
        return masked_url(text)
    if is_credential(key.lstrip("+~"), value.strip("'\"")):
        return f"{key}={MASK}"
    return f"{key}={masked_url(_ENTRY.sub(_masked_entry, _masked_flow(value)))}"


def _masked_flow(value: str) -> str:
    """Mask what looks like a credential in a value's mappings and lists; return any other value unchanged."""
    if not {"{", "["} & set(REFERENCE.sub("", value)):
        return value
    import yaml

    plain = REFERENCE.sub(r"\1" + _STANDS_FOR, value.strip("'") if value.startswith("'") else value)
    try:
        tree = yaml.safe_load(f"[{plain}]")
    except (yaml.YAMLError, ValueError, RecursionError):
        return value
    if not isinstance(tree, list) or (shown := masked(tree)) == tree:
        return value
    text = yaml.safe_dump(shown, default_flow_style=True, sort_keys=False, allow_unicode=True, width=2**31)
    return re.sub(rf"(\w+){_STANDS_FOR}", lambda found: reference(found[1]), text.strip()[1:-1])


def _masked_entry(found: re.Match[str]) -> str:
    key, value = found["key"].strip("\"'"), found["value"]
    shown = MASK if is_credential(key, value.strip("\"'")) and REFERENCE.fullmatch(value) is None else value
    return f"{found['key']}{found['colon']}{shown}"


def literal(tree: Mapping[str, object]) -> Iterator[str]:
    """Yield the dotted keys of values that look like credentials. Must be quick: it reads 10,000 configurations."""
    for key, value in tree.items():
        if type(value) is dict:
            for inner in literal(value):
                yield f"{key}.{inner}"
        elif type(value) is str:
            if is_credential(key, value) or ("://" in value and masked_url(value) != value):
                yield key
        elif isinstance(value, list | tuple):
            for item in value:
                yield from literal({key: item})


def referred(tree: object) -> Iterator[str]:
    """Yield the names of the secrets that a tree refers to."""
    if isinstance(tree, Mapping | list | tuple):
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            yield from referred(value)
    elif isinstance(tree, str):
        yield from REFERENCE.findall(tree)


def described(point: Mapping[str, object]) -> str:
    """Return a point as it is written on the command line, with credentials masked."""
    return " ".join(f"{key}={value}" for key, value in masked(point).items()) or "(no sweep)"
