"""Role: how levers and presets are written in a configuration. Owns: their keys, types and descriptions.

Must not know: engines' arguments, nor what the named presets hold. Every lever has a value that says "not that": absent
(null) means what the named preset says, or else the engine's own default.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

PresetName = Literal[
    "low-latency-cpu",
    "low-latency-a100",
    "low-latency-h100",
    "low-latency-b200",
    "burst-l4",
    "throughput-a100",
    "throughput-h100",
    "throughput-b200",
]
Quantisation = Literal["none", "fp8", "fp8-stored", "fp4", "fp4-stored"]
KvCache = Literal["auto", "fp8"]
Attention = Literal["auto", "flash_attention", "flashinfer", "triton", "torch"]


class _Shape(BaseModel):
    """Frozen and strict about keys, as every section of the configuration is."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NoSpeculation(_Shape):
    """One token of an answer a step."""

    kind: Literal["none"]


class Ngram(_Shape):
    """Drafts what followed the same few tokens earlier in the same text. Needs no second model."""

    kind: Literal["ngram"]
    tokens: int = Field(default=4, ge=1, le=16, strict=True, description="Tokens drafted a step.")


class Eagle3(_Shape):
    """Drafts with a small EAGLE-3 model that was trained for the deployment's model."""

    kind: Literal["eagle3"]
    model: str = Field(description="Repository id or absolute folder of the draft model.", min_length=1)
    tokens: int = Field(default=3, ge=1, le=16, strict=True, description="Tokens drafted a step.")


class Mtp(_Shape):
    """Drafts with the multi-token-prediction layers that the model itself has."""

    kind: Literal["mtp"]
    tokens: int = Field(default=1, ge=1, le=16, strict=True, description="Tokens drafted a step.")


Speculation = Annotated[NoSpeculation | Ngram | Eagle3 | Mtp, Field(discriminator="kind")]


def _kind(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def _name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


SpeculationOption = Annotated[
    Speculation | None,
    BeforeValidator(_kind, json_schema_input_type=Literal["none", "ngram", "mtp"] | Speculation | None),
]
"""A kind alone stands for that kind with its defaults."""


class Levers(_Shape):
    """What one may turn on an engine; null = as the named preset says, else the engine's own default."""

    tensor_parallel: int | None = Field(
        default=None, ge=1, strict=True, description="GPUs that share every layer of one replica."
    )
    quantisation: Quantisation | None = Field(
        default=None,
        description="fp8, fp4: quantise while loading (fp4: the experts of MoE models only); "
        "*-stored: the model's files are quantised already; none: leave the weights as they are.",
    )
    kv_cache: KvCache | None = Field(default=None, description="fp8: one byte a number instead of two.")
    speculation: SpeculationOption = Field(default=None, description="Draft tokens, and verify several in one step.")
    chunked_prefill: int | None = Field(
        default=None,
        ge=0,
        multiple_of=64,
        strict=True,
        description="Tokens that one step takes at most, long prompts in pieces; 0 = prompts whole.",
    )
    mixed_batching: bool | None = Field(
        default=None, description="Pieces of prompts and tokens of running answers in one step. vLLM always does."
    )
    cuda_graphs: bool | None = Field(
        default=None, description="false: eager; neither captured graphs nor (vLLM) compiled kernels."
    )
    prefix_caching: bool | None = Field(default=None, description="Keep the KV cache of prompts for those that follow.")
    attention: Attention | None = Field(default=None, description="Attention kernels; auto = the engine's choice.")


class PresetConfig(Levers):
    """A named preset, levers, or both: a lever that is written here wins over the named preset."""

    name: PresetName | None = Field(default=None, description="A named preset; `tribes explain` shows what it means.")


PresetOption = Annotated[
    PresetConfig | None, BeforeValidator(_name, json_schema_input_type=PresetName | PresetConfig | None)
]
"""A name alone stands for that preset as it is."""
