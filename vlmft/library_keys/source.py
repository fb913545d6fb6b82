"""What the configuration classes of TRL, transformers and PEFT accept: read from their source files.

Importing trl takes many seconds because it brings torch along; parsing the few files that hold the classes
takes hundredths of one. So a mistyped key is told before anything heavy is loaded.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

Kind = Literal["SFTConfig", "DPOConfig", "LoraConfig", "BitsAndBytesConfig"]

HOMES: dict[Kind, str] = {
    "SFTConfig": "trl.trainer.sft_config",
    "DPOConfig": "trl.trainer.dpo_config",
    "LoraConfig": "peft.tuners.lora.config",
    "BitsAndBytesConfig": "transformers.utils.quantization_config",
}


class _NotLiteral:
    def __repr__(self) -> str:
        return "NOT_LITERAL"


NOT_LITERAL = _NotLiteral()  # stands for a default that the source computes, or that is not there at all


@dataclass(frozen=True)
class Field:
    """One key that a configuration class accepts."""

    name: str
    annotation: str  # as in the source; "" where the source gives none
    default: Any  # the literal, or NOT_LITERAL
    choices: tuple[Any, ...]  # from the field's metadata; empty where it names none
    module: str  # the module whose imports give the annotation's names a meaning


class SourceClass(NamedTuple):
    module: str
    node: ast.ClassDef


def fields_of(module: str, name: str) -> dict[str, Field]:
    """Return the keys that the class `name`, as seen from `module`, takes; base classes come first.

    Raises LookupError where the class or one of its bases is not found: the library is absent or moved it.
    """
    found = find_class(module, name)
    if found is None:
        raise LookupError(f"{module}.{name} is not in the installed libraries")
    for method in found.node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            return {field.name: field for field in _parameters(method, found.module)}
    result: dict[str, Field] = {}
    for base in reversed(found.node.bases):
        result.update(fields_of(found.module, ast.unparse(base)))
    if is_dataclass(found.node):
        result.update((field.name, field) for field in _dataclass_fields(found))
    return result


@cache
def find_class(module: str, name: str) -> SourceClass | None:
    """Return where `name`, as `module` spells it, is defined as a class; None where that cannot be told."""
    tree = _parse(module)
    if tree is None:
        return None
    imported_from = None
    for node in _top_level(tree.body):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return SourceClass(module, node)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    imported_from = (_absolute(module, node), alias.name)
    return find_class(*imported_from) if imported_from else None


def is_dataclass(node: ast.ClassDef) -> bool:
    """Return whether the class carries the `@dataclass` decorator."""
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def enum_values(node: ast.ClassDef) -> tuple[Any, ...]:
    """Return the values of an enumeration's members; empty where the class is no enumeration."""
    if not any("Enum" in ast.unparse(base) for base in node.bases):
        return ()
    values = [statement.value for statement in node.body if isinstance(statement, ast.Assign)]
    return tuple(value.value for value in values if isinstance(value, ast.Constant))


def _dataclass_fields(found: SourceClass) -> Iterator[Field]:
    for statement in found.node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        annotation, value = ast.unparse(statement.annotation), statement.value
        if "ClassVar" in annotation:
            continue
        default, choices = _literal(value), ()
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "field":
            arguments = {keyword.arg: keyword.value for keyword in value.keywords}
            if _literal(arguments.get("init")) is False:
                continue
            default = _literal(arguments.get("default"))
            choices = _choices(arguments.get("metadata"))
        yield Field(statement.target.id, annotation, default, choices, found.module)


def _parameters(function: ast.FunctionDef, module: str) -> Iterator[Field]:
    positional = [*function.args.posonlyargs, *function.args.args][1:]
    defaults: list[ast.expr | None] = [*function.args.defaults, *function.args.kw_defaults]
    parameters = [*positional, *function.args.kwonlyargs]
    padding: list[ast.expr | None] = [None] * (len(parameters) - len(defaults))
    for parameter, default in zip(parameters, padding + defaults, strict=True):
        annotation = ast.unparse(parameter.annotation) if parameter.annotation else ""
        yield Field(parameter.arg, annotation, _literal(default), (), module)


def _choices(metadata: ast.expr | None) -> tuple[Any, ...]:
    if isinstance(metadata, ast.Dict):
        for key, value in zip(metadata.keys, metadata.values, strict=True):
            choices = _literal(value) if isinstance(key, ast.Constant) and key.value == "choices" else None
            if isinstance(choices, list | tuple):
                return tuple(choices)
    return ()


def _literal(node: ast.expr | None) -> Any:
    try:
        return NOT_LITERAL if node is None else ast.literal_eval(node)
    except (ValueError, TypeError):
        return NOT_LITERAL


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield a module's statements, with those under `if` and `try` (guarded and lazy imports)."""
    for node in body:
        yield node
        if isinstance(node, ast.If):
            yield from _top_level(node.body)
            yield from _top_level(node.orelse)
        elif isinstance(node, ast.Try):
            yield from _top_level(node.body + node.orelse)


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    path = _path(module)
    parts = module.split(".")
    kept = len(parts) - node.level + (1 if path is not None and path.name == "__init__.py" else 0)
    return ".".join(parts[:kept] + ([node.module] if node.module else []))


@cache
def _parse(module: str) -> ast.Module | None:
    path = _path(module)
    return None if path is None else ast.parse(path.read_bytes())


@cache
def _path(module: str) -> Path | None:
    top, *rest = module.split(".")
    # A dotted name would import its parent package; the top-level name alone imports nothing.
    spec = importlib.util.find_spec(top) if top else None
    if spec is None or not spec.submodule_search_locations:
        return None
    base = Path(next(iter(spec.submodule_search_locations))).joinpath(*rest)
    candidates = (base.with_suffix(".py"), base / "__init__.py") if rest else (base / "__init__.py",)
    return next((path for path in candidates if path.is_file()), None)
