"""Role: read YAML text without losing where each key stands. Owns: syntax errors, duplicate keys, line numbers.

Must not know: what the keys mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from cluster.config.errors import KeyPath, Problem


@dataclass(frozen=True)
class Document:
    """A parsed file: its plain data, the problems found while reading it, and the tree that knows the lines."""

    data: Any
    problems: tuple[Problem, ...] = ()
    root: Any = field(default=None, repr=False)

    def line_of(self, path: KeyPath) -> int | None:
        """The line of the deepest key of the path that the file has (a missing key points at its section)."""
        node, line = self.root, None
        for item in path:
            found = _child(node, item)
            if found is None:
                break
            line, node = found
        return line


def parse(text: str) -> Document:
    """Parse one YAML document. Broken syntax leaves no data; duplicate keys leave data and problems."""
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return Document(None)
        duplicates = tuple(_duplicates(root, (), set()))
        return Document(loader.construct_document(root), duplicates, root)
    except yaml.YAMLError as error:
        return Document(None, (_syntax_problem(error),))
    except (
        ValueError,
        TypeError,
    ) as error:  # an impossible date, an unhashable key: YAML's own constructors raise these
        return Document(None, (Problem((), f"not readable as YAML: {error}"),))


def _syntax_problem(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    if mark is None:
        return Problem((), f"YAML syntax error: {what}")
    where = getattr(error, "context", None)
    context = f" {where}" if where else ""
    return Problem((), f"YAML syntax error at line {mark.line + 1}, column {mark.column + 1}:{context} {what}")


def _duplicates(node: Any, path: KeyPath, seen: set[int]) -> Iterator[Problem]:
    """Keys given twice in one mapping: YAML would silently keep the last one."""
    if id(node) in seen:  # anchors make the tree a graph
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _duplicates(value, (*path, index), seen)
    elif isinstance(node, yaml.MappingNode):
        first_line: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            below = (*path, str(key.value))
            if isinstance(key, yaml.ScalarNode):
                if first := first_line.get((key.tag, key.value)):
                    yield Problem(below, f"duplicate key, first given in line {first}; keep one of them", _line(key))
                first_line.setdefault((key.tag, key.value), _line(key))
            yield from _duplicates(value, below, seen)


def _child(node: Any, item: str | int) -> tuple[int, Any] | None:
    if isinstance(node, yaml.MappingNode):
        matches = [(_line(key), value) for key, value in node.value if key.value == str(item)]
        return matches[-1] if matches else None
    if isinstance(node, yaml.SequenceNode) and isinstance(item, int) and item < len(node.value):
        return _line(node.value[item]), node.value[item]
    return None


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1
