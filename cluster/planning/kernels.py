"""Role: step models from measured kernels, where `aiconfigurator-core` is installed and has them. Owns: its calls, and
which of its names mean what. It is 82 MB and optional: `pip install "tribes[plan]"`. Must not know: the search.

It answers in milliseconds for a whole prefill and for one decode step; a few such answers around the sizes in question
are fitted to the same form as everything else.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cluster.planning.fit import Sample, fit
from cluster.planning.shape import Quantisation, Shape
from cluster.simulation.step_model import StepModel

PACKAGE: Final = "aiconfigurator_core"
_SYSTEMS: Final = {
    "A100-80G": "a100_sxm",
    "L40S": "l40s",
    "H100": "h100_sxm",
    "H200": "h200_sxm",
    "B200": "b200_sxm",
    "B300": "b300_sxm",
    "GB200": "gb200",
    "GB300": "gb300",
    "RTX-PRO-6000": "rtx_pro_6000_server",
}
_MODES: Final[dict[Quantisation, str]] = {
    "none": "bfloat16",
    "fp8": "fp8",
    "fp8-stored": "fp8",
    "fp4-stored": "nvfp4",
}


class KernelTimesError(RuntimeError):
    """The package is asked for and cannot be used; the message names the cure."""


@dataclass(frozen=True)
class KernelTimes:
    """Measured kernels for one model. `compile_engine` is the package's, or a double of it."""

    model_folder: Path
    """With a config.json."""
    compile_engine: Callable[..., Any]
    _engines: dict[tuple[Shape, str | None], Any] = field(default_factory=dict, repr=False)
    """Compiled already: it takes seconds, and each class asks again."""

    def step_model(
        self, shape: Shape, *, sequences: int, prompt_tokens: float, context_tokens: float
    ) -> StepModel | None:
        """None where it has no measurements for this model, accelerator, engine or format, or the pipeline has stages:
        those are not fitted by one line."""
        system, mode = _SYSTEMS.get(shape.accelerator), _MODES.get(shape.quantisation)
        if system is None or mode is None or shape.pipeline_parallel > 1:
            return None
        # SGLang has FP8 caches only with FP8 attention, vLLM only without: ask for what there is.
        for attention in (None, "fp8") if shape.fp8_cache else (None,):
            try:
                engine = self._engine(shape, system, mode, attention)
                return fit(_samples(engine, sequences, prompt_tokens, context_tokens)).step
            except Exception as error:  # it has no error of its own for "not measured": each part raises its own
                logging.getLogger(__name__).info("no kernel times for %s: %s", shape.title, error)
        return None

    def _engine(self, shape: Shape, system: str, mode: str, attention: str | None) -> Any:
        known = self._engines.get((shape, attention))
        if known is None:
            known = self._engines[shape, attention] = self.compile_engine(
                str(self.model_folder),
                system,
                shape.engine,
                tp_size=shape.tensor_parallel,
                moe_tp_size=shape.tensor_parallel,
                gemm_quant_mode=mode,
                moe_quant_mode=mode,
                kvcache_quant_mode="fp8" if shape.fp8_cache else "bfloat16",
                fmha_quant_mode=attention,
            )
        return known


def kernel_times(model_folder: Path) -> KernelTimes | None:
    """None where the package is not installed."""
    if importlib.util.find_spec(PACKAGE) is None:
        return None
    try:
        from aiconfigurator_core.sdk import EngineHandle
    except ImportError as error:
        raise KernelTimesError(
            f"aiconfigurator-core is installed and cannot be imported ({error}); remove it, or install the version of "
            'the extra: pip install "tribes[plan]"'
        ) from error
    logging.getLogger(PACKAGE).setLevel(logging.CRITICAL)  # it tells of each table that it replaces by another
    return KernelTimes(model_folder, EngineHandle.compile)


def _samples(engine: Any, sequences: int, prompt_tokens: float, context_tokens: float) -> list[Sample]:
    found = []
    for length in {max(16, round(prompt_tokens * factor)) for factor in (0.5, 1, 2)}:
        seconds = engine.predict_prefill_latency(1, length) / 1e3
        found.append(Sample(seconds, length, 1, 0, first_token=True))
    for count in {1, max(2, sequences // 4), max(3, sequences)}:
        for context in {max(16, round(context_tokens * factor)) for factor in (0.5, 1, 2)}:
            seconds = engine.decode_step_latency(count, context, 2) / 1e3
            found.append(Sample(seconds, 0, count, count * context))
    return found
