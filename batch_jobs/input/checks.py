"""Is this a job at all? Checks of the input's columns against what is asked of every row.

Role: refuse before anything starts what every row would fail on, naming the cure. Owns: those messages.
Must not know: how columns were found.
"""

from __future__ import annotations

from collections.abc import Sequence

from batch_jobs.errors import JobRefused
from batch_jobs.input.openai_batch import BATCH_COLUMNS, is_openai_batch
from batch_jobs.input.rows import PROMPT_COLUMNS, RESULT_COLUMNS, TEXT_COLUMNS
from batch_jobs.input.spec import JobSpec, PromptTemplate, Task
from batch_jobs.input.template import check_template


def check_columns(names: Sequence[str], spec: JobSpec) -> None:
    """Raises JobRefused. `names` are the columns that any row has."""
    seen = ", ".join(names) or "none: no line is a JSON object"
    if spec.openai_batch:
        if not is_openai_batch(names):
            raise JobRefused(f"OpenAI batch requests need {', '.join(BATCH_COLUMNS)} (columns: {seen}).")
    elif spec.prompts:
        _check_templates(names, spec, seen)
    else:
        _check_prompt_columns(names, spec, seen)
    if not spec.openai_batch and spec.system is not None:
        _check_template(PromptTemplate("system", spec.system), names, seen)
    taken = sorted(set(names) & set(RESULT_COLUMNS))
    if taken:
        raise JobRefused(f"input columns {', '.join(taken)} would collide with the job's own results. Rename them.")


def _check_prompt_columns(names: Sequence[str], spec: JobSpec, seen: str) -> None:
    example = f"{{{{ {names[0] if names else 'text'} }}}}"
    if spec.task is Task.SCORE:
        missing = [name for name in TEXT_COLUMNS if name not in names]
        if missing:
            raise JobRefused(
                f"no {' and no '.join(missing)} column in the input (columns: {seen}). Rename the columns to compare, "
                f"or give templates: --prompt 'text_1={example}' --prompt 'text_2=...'."
            )
    elif not set(PROMPT_COLUMNS) & set(names):
        raise JobRefused(
            f"no prompt, messages or prompts column in the input (columns: {seen}). "
            f"Rename the column that has it, or give a template: --prompt '{example}'."
        )


def _check_templates(names: Sequence[str], spec: JobSpec, seen: str) -> None:
    for template in spec.prompts:
        _check_template(template, names, seen)
    if spec.task is Task.SCORE and {template.name for template in spec.prompts} != set(TEXT_COLUMNS):
        raise JobRefused("a score job takes two templates: --prompt 'text_1=...' --prompt 'text_2=...'.")


def _check_template(template: PromptTemplate, names: Sequence[str], seen: str) -> None:
    unknown = sorted(check_template(template) - set(names))
    if unknown:
        raise JobRefused(
            f"wrong column name: template {template.name} uses {', '.join(unknown)}, which no row has "
            f"(columns: {seen}). Correct the template."
        )
