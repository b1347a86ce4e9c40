"""Prompt templates: Jinja2 over the columns of a row.

Role: a row's columns in, text out. Owns: the environment that templates run in, and what a missing column means.
Must not know: what becomes of the text.

The environment is Jinja2's sandbox: a template that came with somebody's data set cannot reach Python's internals.
A column that is null is not there, as Parquet and CSV have no other way to leave one out: `{{ x }}` fails the row
instead of prompting the model with "None", and `{{ x | default("") }}` works for both. Columns whose names are no
identifiers are reached through `row`: `{{ row["my column"] }}`.
"""

from __future__ import annotations

import functools
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, UndefinedError, meta
from jinja2.sandbox import SandboxedEnvironment

from batch_jobs.errors import JobRefused, RowError, RowErrorKind
from batch_jobs.input.spec import PromptTemplate

ROW_VARIABLE = "row"


@functools.cache
def _environment() -> SandboxedEnvironment:
    return SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)


@functools.lru_cache(maxsize=64)
def _compiled(source: str) -> Template:
    return _environment().from_string(source)


def check_template(template: PromptTemplate) -> set[str]:
    """The columns that a template names. Raises JobRefused for one that does not parse."""
    try:
        _compiled(template.source)
        names = meta.find_undeclared_variables(_environment().parse(template.source))
    except TemplateSyntaxError as error:
        raise JobRefused(
            f"template {template.name}: line {error.lineno}: {error.message}. "
            "Templates are Jinja2: columns stand in {{ }}, as in 'Summarise: {{ text }}'."
        ) from error
    except Exception as error:  # names of filters and tests are looked up while compiling, in several exception types
        raise JobRefused(f"template {template.name}: {error}. Templates are Jinja2; correct it.") from error
    return names - set(_environment().globals) - {ROW_VARIABLE}


def render(template: PromptTemplate, columns: dict[str, Any]) -> str:
    """The text of one row. Raises RowError."""
    known = {name: value for name, value in columns.items() if value is not None}
    try:
        return _compiled(template.source).render({ROW_VARIABLE: known} | known)
    except UndefinedError as error:
        there = ", ".join(known) or "none"
        raise RowError(
            RowErrorKind.TEMPLATE_FAILED,
            f"template {template.name}: {error.message} in this row, which has the columns {there}",
        ) from error
    except Exception as error:  # a template is a program: it may divide by zero
        raise RowError(
            RowErrorKind.TEMPLATE_FAILED, f"template {template.name}: {type(error).__name__}: {error}"
        ) from error
