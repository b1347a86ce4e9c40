"""Role: turn pydantic's errors into problems an operator can act on. Owns: the wording per error type, key paths.

Must not know: YAML or files.
"""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cluster.config.base import PATTERN_CURES, SECRET_ERROR
from cluster.config.errors import ConfigError, KeyPath, Problem, hint

_KEY_MARK = "[key]"  # pydantic ends the location of an error in a mapping's key with this
_SECTION_ERRORS = {"model_type", "model_attributes_type", "dict_type"}
_TEXT_ERRORS = {"string_type", "path_type"}


def explain(error: ValidationError, root: type[BaseModel]) -> list[Problem]:
    """One problem or more for each of pydantic's errors about `root`."""
    problems: list[Problem] = []
    for detail in error.errors(include_url=False):
        cause = detail.get("ctx", {}).get("error")
        problems += cause.problems if isinstance(cause, ConfigError) else [_problem(detail, root)]
    return problems


def _problem(detail: ErrorDetails, root: type[BaseModel]) -> Problem:
    path, owner = _locate(detail["loc"], root)
    if detail["loc"] and detail["loc"][-1] == _KEY_MARK:
        return Problem(path, f"not a valid name here: {_wording(detail)}")
    match detail["type"]:
        case "extra_forbidden":
            known = owner.model_fields if owner else ()
            # source_path is ours to set: naming it would invite people to write it.
            return Problem(path, f"unknown key; {hint(path[-1], (key for key in known if key != 'source_path'))}")
        case "union_tag_invalid" | "union_tag_not_found":
            return _tag_problem(detail, path)
        case _:
            return Problem(path, _wording(detail))


def _tag_problem(detail: ErrorDetails, path: KeyPath) -> Problem:
    context = detail["ctx"]
    tag = str(context["discriminator"]).strip("'")
    if detail["type"] == "union_tag_not_found":
        return Problem((*path, tag), "required key is missing")
    choices = [choice.strip("' ") for choice in str(context["expected_tags"]).split(",")]
    return Problem((*path, tag), f"unknown {tag} {context['tag']!r}; {hint(context['tag'], choices)}")


def _wording(detail: ErrorDetails) -> str:
    given, kind, context = detail["input"], detail["type"], detail.get("ctx", {})
    if kind == "missing":
        return "required key is missing"
    if kind == SECRET_ERROR:
        return detail["msg"]
    if kind in {"enum", "literal_error"}:
        choices = [choice.strip("' ") for choice in str(context["expected"]).replace(" or ", ", ").split(",")]
        return f"{given!r} is not one of {', '.join(choices)}; {hint(given, choices)}"
    if kind == "string_pattern_mismatch":
        cure = PATTERN_CURES.get(context["pattern"], f"it must match {context['pattern']}")
        return f"{given!r} does not fit; {cure}"
    if kind in _SECTION_ERRORS and given is None:
        return "the section is empty; give it keys, or remove it"
    if kind in _SECTION_ERRORS:
        return f"must be a section of keys and values, not {_shown(given)}"
    if kind in _TEXT_ERRORS and isinstance(given, bool | int | float):
        literal = str(given).lower() if isinstance(given, bool) else str(given)
        return f'must be text, not {literal}; quote it: "{literal}"'
    message = detail["msg"].replace("Input should be", "must be", 1)
    return f"{message[:1].lower()}{message[1:]}; got {_shown(given)}"


def _shown(given: Any) -> str:
    if given is None:
        return "nothing (null)"
    if isinstance(given, str):
        return repr(given if len(given) <= 60 else f"{given[:57]}...")
    if isinstance(given, list | dict):
        return f"an empty {type(given).__name__}" if not given else f"a {type(given).__name__}"
    return str(given)


def _locate(location: tuple[str | int, ...], root: type[BaseModel]) -> tuple[KeyPath, type[BaseModel] | None]:
    """The path as written in the file, and the section that the last key belongs to.

    Pydantic's locations also hold union tags, which the file does not have: only the types tell them apart.
    """
    path: list[str | int] = []
    owner: type[BaseModel] | None = None
    annotation: Any = root
    for item in location:
        if item == _KEY_MARK:
            break
        annotation = _bare(annotation)
        if member := _tagged_member(annotation, item):
            annotation = member
            continue
        path.append(item)
        owner = annotation if _is_section(annotation) else None
        annotation = _step(annotation, item)
    return tuple(path), owner


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _bare(annotation: Any) -> Any:
    """The annotation without Annotated and without `| None`."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        return _bare(members[0]) if len(members) == 1 else annotation
    return annotation


def _tagged_member(annotation: Any, tag: str | int) -> type[BaseModel] | None:
    """The member of a union of sections whose `kind` is the tag."""
    if get_origin(annotation) not in (Union, UnionType):
        return None
    for member in filter(_is_section, get_args(annotation)):
        if tag in get_args(member.model_fields["kind"].annotation):
            found: type[BaseModel] = member
            return found
    return None


def _step(annotation: Any, item: str | int) -> Any:
    """The type of what lies under the key or index."""
    if _is_section(annotation):
        field = annotation.model_fields.get(item)
        return field.annotation if field else None
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is dict:
        return arguments[1]
    return arguments[0] if origin is list else None
