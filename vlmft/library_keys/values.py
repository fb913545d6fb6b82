"""Whether a value from YAML fits the annotation that a library's source gives its key.

Strict where the annotation is plain (numbers, text, true/false, named values); whatever cannot be resolved is
accepted, since the library itself still checks it.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlmft.library_keys.source import NOT_LITERAL, Field, SourceClass, enum_values, find_class, is_dataclass

# In the words of a YAML file.
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "dict": "a mapping",
    "None": "null",
}
_MOST_LISTED = 12  # values; of more than these only the nearest are named
_SAME = {"List": "list", "Tuple": "tuple", "Set": "set", "Dict": "dict", "Mapping": "dict"}

# Values that the libraries accept although their annotation does not say so, or that none names at all.
_MORE_VALUES: dict[str, tuple[str, ...]] = {
    "init_lora_weights": ("lora_ga",),
    "bnb_4bit_quant_type": ("fp4", "nf4"),
    "bnb_4bit_compute_dtype": ("float32", "float16", "bfloat16"),
    "bnb_4bit_quant_storage": ("float16", "float32", "float64", "bfloat16", "int8", "uint8"),
}


def mismatch(field: Field, value: Any) -> str | None:
    """Return what is wrong with `value` for `field`, or None where it fits or where that cannot be told."""
    kinds = _alternatives(field)
    named = _named_values(field, kinds)
    if named and isinstance(value, tuple({type(each) for each in named})) and not isinstance(value, bool):
        if any(_matches(value, each) for each in named):
            return None
        close = nearest(str(value), map(str, named))
        listed = "its values" if close and len(named) > _MOST_LISTED else ", ".join(map(str, named))
        return f"{value!r} is not one of {listed}{close}"
    if any(_accepts(kind, value, field.module) for kind in kinds):
        return None
    if isinstance(value, str):
        return _for_text(value, kinds, field.module)
    return f"expected {_describe(kinds)}, got {_show(value)}"


def nested_class(field: Field) -> SourceClass | None:
    """Return the dataclass whose keys a mapping given for `field` must have; None where it takes none."""
    for kind in _alternatives(field):
        found = find_class(field.module, kind.id) if isinstance(kind, ast.Name) else None
        if found is not None and is_dataclass(found.node):
            return found
    return None


def nearest(name: str, legal: Iterable[str]) -> str:
    """Return `; nearest: a or b` for the legal names most like `name`, or nothing where none is like it."""
    close = difflib.get_close_matches(name, list(legal), n=2, cutoff=0.66)
    return f"; nearest: {' or '.join(close)}" if close else ""


def _alternatives(field: Field) -> list[ast.expr]:
    """The members of the annotation's union; one inferred from the default where there is no annotation."""
    if not field.annotation:
        kind = type(field.default).__name__
        known = field.default is not NOT_LITERAL and kind in _WORDS
        return [ast.Name(kind if known else "Any")]
    kinds = list(_flat(ast.parse(field.annotation, mode="eval").body))
    # Dataclasses of these libraries often say `x: int = None`.
    return [*kinds, ast.Constant(None)] if field.default is None else kinds


def _flat(node: ast.expr) -> Iterable[ast.expr]:
    match node:
        case ast.BinOp(op=ast.BitOr()):
            yield from _flat(node.left)
            yield from _flat(node.right)
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=members)):
            for member in members:
                yield from _flat(member)
        case ast.Subscript(value=ast.Name(id="Optional"), slice=member):
            yield from _flat(member)
            yield ast.Constant(None)
        case ast.Constant(value=str() as text):  # a forward reference
            yield from _flat(ast.parse(text, mode="eval").body)
        case _:
            yield node


def _named_values(field: Field, kinds: list[ast.expr]) -> tuple[Any, ...]:
    named = list(field.choices)
    for kind in kinds:
        if isinstance(kind, ast.Name) and kind.id not in _WORDS:
            found = find_class(field.module, kind.id)
            named += enum_values(found.node) if found else ()
        elif isinstance(kind, ast.Subscript) and ast.unparse(kind.value) == "Literal":
            members = kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice]
            named += [member.value for member in members if isinstance(member, ast.Constant)]
    named = [each for each in named if isinstance(each, str | int) and not isinstance(each, bool)]
    return (*named, *_MORE_VALUES.get(field.name, ()))


def _matches(value: Any, named: Any) -> bool:
    # PEFT writes `pissa_niter_[number of iters]` for a family of values.
    if isinstance(value, str) and isinstance(named, str) and "[" in named:
        pattern = r"\d+".join(re.escape(part) for part in re.split(r"\[[^]]*\]", named))
        return re.fullmatch(pattern, value) is not None
    return bool(value == named)


def _accepts(kind: ast.expr, value: Any, module: str) -> bool:
    element = kind.slice if isinstance(kind, ast.Subscript) else None
    match _name(kind):
        case "None":
            return value is None
        case "bool":
            return isinstance(value, bool)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "float":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "str":
            return isinstance(value, str)
        case "dict":
            return isinstance(value, Mapping)
        case "list":
            inner = list(_flat(element or ast.Name("Any")))
            return _is_list(value) and all(any(_accepts(k, each, module) for k in inner) for each in value)
        case "tuple" | "set":
            return _is_list(value)
        case "Literal":  # text is compared before; what is left are true and false
            listed = element.elts if isinstance(element, ast.Tuple) else [element]
            return any(isinstance(each, ast.Constant) and each.value is value for each in listed)
    found = find_class(module, _name(kind))
    if found is not None and is_dataclass(found.node):
        return isinstance(value, Mapping)
    members = enum_values(found.node) if found is not None else ()
    return not members or value in members


def _name(kind: ast.expr) -> str:
    name = ast.unparse(kind.value if isinstance(kind, ast.Subscript) else kind).removeprefix("typing.")
    return _SAME.get(name, name)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _for_text(value: str, kinds: list[ast.expr], module: str) -> str:
    """Quotes are the usual reason for text where none belongs, next to a list of one without its brackets."""
    plain: Any = {"true": True, "false": False, "null": None}.get(value.strip().lower(), value)
    for read in (int, float):
        if isinstance(plain, str):
            try:
                plain = read(plain)
            except ValueError:
                continue
    expected = f"expected {_describe(kinds)}, got the text {value!r}"
    if not isinstance(plain, str) and any(_accepts(kind, plain, module) for kind in kinds):
        return f"{expected}: write {value.strip()} without quotes"
    if any(_accepts(kind, [value], module) for kind in kinds):
        return f"{expected}: write [{value}]"
    return expected


def _describe(kinds: list[ast.expr]) -> str:
    words = []
    for kind in kinds:
        name = _name(kind)
        word = _WORDS.get(name, "a mapping")
        if name == "list" and isinstance(kind, ast.Subscript):
            word = f"a list of {ast.unparse(kind.slice)}"
        if name == "Literal":
            continue
        words.append(word)
    return " or ".join(dict.fromkeys(words)) or "another kind of value"


def _show(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)
