"""Role: the `models` section. Owns: where weights come from. Must not know: how they are fetched or served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from cluster.config.base import Section


class PackageGGUF(Section):
    """A GGUF file inside an installed Python package, converted once into a Hugging Face folder."""

    kind: Literal["package_gguf"]
    package: str = Field(description="Import name of the installed package.", pattern=r"^[A-Za-z_][\w.]*$")
    file: str = Field(description="The GGUF file inside the package.", min_length=1)
    torch_dtype: str = Field(default="bfloat16", description="Data type of the converted weights.")


class LocalFolder(Section):
    """A Hugging Face folder that every node can read."""

    kind: Literal["local"]
    path: Path = Field(description="The folder; relative to the configuration file.")


class HuggingFace(Section):
    """A repository on the Hugging Face hub."""

    kind: Literal["huggingface"]
    id: str = Field(description="Repository id, such as meta-llama/Llama-3.1-8B-Instruct.", min_length=1)
    revision: str | None = Field(default=None, description="Branch, tag or commit; a commit makes restarts repeatable.")


class S3(Section):
    """A Hugging Face folder in an S3 bucket."""

    kind: Literal["s3"]
    url: Annotated[str, StringConstraints(pattern=r"^s3://[^/]+/.+")] = Field(description="s3://bucket/folder")


ModelSource = Annotated[PackageGGUF | LocalFolder | HuggingFace | S3, Field(discriminator="kind")]


class ModelConfig(Section):
    """A model that clients can name."""

    source: ModelSource = Field(description="Where the weights come from; `kind` picks the form.")
    max_model_len: int | None = Field(
        default=None, ge=1, description="Context length in tokens, prompt and answer together; null = the model's own."
    )
