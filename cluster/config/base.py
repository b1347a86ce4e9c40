"""Role: what every section of the configuration has in common. Owns: the strict base class and the name types.

Must not know: any particular section.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9._-]{0,62}$"
MODEL_NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,199}$"
ANY_OR_NAME_PATTERN: Final = r"^(\*|[a-z0-9][a-z0-9._-]{0,62})$"

PATTERN_CURES: Final = {
    NAME_PATTERN: (
        "use 1 to 63 lower-case letters, digits, dots, underscores and dashes, starting with a letter or digit"
    ),
    MODEL_NAME_PATTERN: "use letters, digits and . _ : / @ -, starting with a letter or digit",
    ANY_OR_NAME_PATTERN: "name an upstream, or write * for all that are not named",
}

SECRET_ERROR: Final = "secret"
"""Errors of this type are told without what was given: it may be a key."""

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""Names of tenants, pools and deployments: they become metric labels, Ray actor names and file names."""

ModelName = Annotated[str, StringConstraints(pattern=MODEL_NAME_PATTERN)]
"""A model id as clients say it; Hugging Face style ids have a slash."""

Port = Annotated[int, Field(ge=1, le=65535)]


class Section(BaseModel):
    """Frozen, and strict about keys: a misspelt key must never silently mean the default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
