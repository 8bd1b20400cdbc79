"""A form for any recipe: made from its fields, read back into them, with every fault beside its field."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rating_app.admin.visitors import Form

LONG_TEXT = 300


@dataclass(frozen=True)
class Field:
    """One input. ``path`` is its place in the recipe, with dots; ``kind``: text, long, lines, whole, decimal, check,
    choice or choices; ``value`` is text, a list of texts, or a bool."""

    path: str
    label: str
    hint: str
    kind: str
    value: Any
    options: tuple[tuple[str, str], ...] = ()
    least: float | None = None
    most: float | None = None
    longest: int | None = None
    required: bool = False
    faults: tuple[str, ...] = ()

    @property
    def element_id(self) -> str:
        return "f-" + self.path.replace(".", "-")


@dataclass(frozen=True)
class Group:
    """Fields under one heading; ``faults`` are those of the group as a whole."""

    path: str
    title: str
    hint: str
    fields: tuple[Field, ...]
    faults: tuple[str, ...] = ()

    @property
    def has_faults(self) -> bool:
        return bool(self.faults) or any(one.faults for one in self.fields)


@dataclass(frozen=True)
class Faults:
    """What is wrong with values, by field path; ``at_large`` belongs to no field."""

    by_path: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    at_large: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.at_large) + sum(len(found) for found in self.by_path.values())


def faults_of(error: ValidationError, recipe: type[BaseModel]) -> Faults:
    """Every fault of a validation, told at the field it belongs to."""
    known = {one for one, _ in _leaves(recipe)} | {one for one, _ in _groups(recipe)}
    by_path: dict[str, list[str]] = {}
    at_large = []
    for fault in error.errors(include_url=False):
        parts = [str(part) for part in fault["loc"] if not isinstance(part, int)]
        said = fault["msg"].removeprefix("Value error, ")
        said = said[0].upper() + said[1:] + "."
        if fault["type"] == "extra_forbidden":
            at_large.append(f"{'.'.join(parts)} is no field of a study; remove it or correct its name.")
            continue
        while parts and ".".join(parts) not in known:
            parts.pop()
        if parts:
            by_path.setdefault(".".join(parts), []).append(said)
        else:
            at_large.append(said)
    return Faults({path: tuple(dict.fromkeys(told)) for path, told in by_path.items()}, tuple(at_large))


def groups_of(
    recipe: type[BaseModel], values: Mapping[str, Any], faults: Faults, choices: Mapping[str, Sequence[str]]
) -> list[Group]:
    """The form's groups, filled with ``values`` (a recipe as JSON, or what was typed).

    ``choices`` gives the known answers of text fields by path: a list becomes checkboxes, one text a menu."""
    found = []
    for path, model in _groups(recipe):
        fields = tuple(
            _field(leaf, info, _at(values, leaf), faults.by_path.get(leaf, ()), choices.get(leaf))
            for leaf, info in _leaves(recipe)
            if leaf.rpartition(".")[0] == path
        )
        title = (model.__doc__ or "").strip().split("\n")[0].rstrip(".") if path else "The study"
        name = " / ".join(map(_label, path.split("."))) if path else title
        found.append(Group(path, name, title, fields, faults.by_path.get(path, ())))
    return found


def values_from(recipe: type[BaseModel], form: Form) -> dict[str, Any]:
    """What was typed, ready to be validated: numbers as numbers where they are, empty optional fields as None."""
    values: dict[str, Any] = {}
    for path, info in _leaves(recipe):
        kind, _ = _kind(info)
        optional = NoneType in get_args(info.annotation)
        if kind == "check":
            value: Any = path in form
        elif kind == "choices":
            value = form.all(path)
        elif kind == "lines":
            value = form.all(path) if len(form.all(path)) > 1 else [
                line.strip() for line in form.raw(path).splitlines() if line.strip()
            ]  # fmt: skip
        elif kind in ("whole", "decimal"):
            value = _numeric(form.get(path))
            if value == "" and not optional:
                continue  # the recipe's own default
        else:
            value = form.raw(path).replace("\r\n", "\n").strip()
        if value in ("", []) and optional:
            value = None
        place = values
        *parents, last = path.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return values


def values_from_yaml(text: str, *, example: str = "configs/study.yaml") -> tuple[dict[str, Any], Faults]:
    """(values, faults) of pasted YAML; faults tell when it is none, and what to compare it with."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        return {}, Faults(at_large=(f"This is not valid YAML{where}; compare it with {example}.",))
    except RecursionError:
        return {}, Faults(at_large=("This YAML is nested too deeply.",))
    if not isinstance(values, dict):
        return {}, Faults(at_large=("The YAML holds no fields; it must be lines of `name: value`.",))
    return {str(key): value for key, value in values.items()}, Faults()


def defaults_of(recipe: type[BaseModel]) -> dict[str, Any]:
    """The recipe's defaults as JSON values, by nested name."""
    values: dict[str, Any] = {}
    for path, info in _leaves(recipe):
        default = info.get_default(call_default_factory=True)
        if default is PydanticUndefined:
            continue
        place = values
        *parents, last = path.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = _plain(default)
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value


def _model(info: FieldInfo) -> type[BaseModel] | None:
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _groups(recipe: type[BaseModel], path: str = "") -> list[tuple[str, type[BaseModel]]]:
    found = [(path, recipe)]
    for name, info in recipe.model_fields.items():
        inner = _model(info)
        if inner is not None:
            found += _groups(inner, f"{path}.{name}".strip("."))
    return found


def _leaves(recipe: type[BaseModel], path: str = "") -> list[tuple[str, FieldInfo]]:
    found = []
    for name, info in recipe.model_fields.items():
        here, inner = f"{path}.{name}".strip("."), _model(info)
        found += [(here, info)] if inner is None else _leaves(inner, here)
    return found


def _kind(info: FieldInfo) -> tuple[str, tuple[str, ...]]:
    """(kind of input, its closed list of answers)."""
    kind = info.annotation
    if get_origin(kind) in (Union, UnionType):
        kind = next(part for part in get_args(kind) if part is not NoneType)
    if kind is bool:
        return "check", ()
    if kind is int:
        return "whole", ()
    if kind is float:
        return "decimal", ()
    if get_origin(kind) is Literal:
        return "choice", tuple(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        if get_origin(inner) is Literal:
            return "choices", tuple(map(str, get_args(inner)))
        if isinstance(inner, type) and issubclass(inner, enum.Enum):
            return "choices", tuple(str(member.value) for member in inner)
        return "lines", ()
    return ("long" if (_bound(info, "max_length") or 0) > LONG_TEXT else "text"), ()


def _bound(info: FieldInfo, *names: str) -> Any:
    for name in names:
        for rule in info.metadata:
            if getattr(rule, name, None) is not None:
                return getattr(rule, name)
    return None


def _field(path: str, info: FieldInfo, value: Any, faults: tuple[str, ...], choices: Sequence[str] | None) -> Field:
    kind, options = _kind(info)
    if choices is not None and kind == "lines":
        kind, options = "choices", tuple(dict.fromkeys([*choices, *_texts(value)]))
    elif kind == "choice" and NoneType in get_args(info.annotation):
        options = ("", *options)
    elif choices is not None:
        kind, options = "choice", tuple(dict.fromkeys(["", *choices, *([str(value)] if value else [])]))
    if kind in ("choices", "lines"):
        shown: Any = _texts(value) if kind == "choices" else "\n".join(_texts(value))
    elif kind == "check":
        shown = bool(value)
    else:
        shown = "" if value is None else str(value.value if isinstance(value, enum.Enum) else value)
    if choices is None:
        told = tuple((option, _label(option) or "none") for option in options)
    else:
        told = tuple((option, option or "none") for option in options)
    return Field(
        path=path, label=_label(path), hint=info.description or "", kind=kind, value=shown, options=told,
        least=_bound(info, "ge", "gt"), most=_bound(info, "le", "lt"), longest=_bound(info, "max_length"),
        required=info.is_required(), faults=faults,
    )  # fmt: skip


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return [str(one.value if isinstance(one, enum.Enum) else one) for one in value]
    return []


def _at(values: Mapping[str, Any], path: str) -> Any:
    place: Any = values
    for part in path.split("."):
        if not isinstance(place, Mapping) or part not in place:
            return None
        place = place[part]
    return place


def _numeric(text: str) -> Any:
    """The number in the text, or the text, of which validation says what is wrong."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _label(path: str) -> str:
    word = path.rpartition(".")[2].replace("_", " ")
    return {"ab": "A/B", "mos": "MOS", "": ""}.get(word, word[:1].upper() + word[1:])
