"""vLLM's AsyncLLM as the engine of an offline job.

Role: prompts in, results out, through vLLM's Python API. Owns: which vLLM exception means what.
Must not know: Ray, files. Imported only in engine processes.

Prompts and chats go through AsyncLLM's own renderer, the one behind its OpenAI server: chat template, special tokens
and length checks are those of online serving.

vLLM runs the model in child processes that do not notice the SIGKILL of their parent (measured: they stay for ever,
with the accelerator's memory); engine_actor.py puts the process under orphans.py for that.
"""

from __future__ import annotations

import uuid
from typing import Any

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.renderers import ChatParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from batch_jobs.engines.base import EngineDied, EngineSettings
from batch_jobs.errors import RowError, RowErrorKind
from batch_jobs.input.rows import Prompt
from batch_jobs.output.parts import Result

_TOO_LONG_PARAMETERS = ("input_tokens", "input_text")


class VllmEngine:
    """One AsyncLLM."""

    def __init__(self, settings: EngineSettings) -> None:
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(settings)))
        config = self._engine.model_config
        # None = up to the end of the context, as in vLLM's server; SamplingParams' own default is 16 tokens.
        chosen = {"max_tokens": None} | config.get_diff_sampling_param() | settings.sampling.given()
        self._params = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **chosen)
        self._chat = ChatParams(chat_template_kwargs={"add_generation_prompt": True})
        self._max_model_len = config.max_model_len

    async def generate(self, row_id: str, prompt: Prompt) -> Result:
        rendered = await self._render(prompt)
        try:
            # Request ids must be unique in the engine and row ids are the user's words.
            final = None
            async for output in self._engine.generate(rendered, self._params.clone(), uuid.uuid4().hex):
                final = output
        except EngineDeadError as error:
            raise EngineDied(str(error)) from error
        except (VLLMClientError, ValueError) as error:
            raise self._row_error(error, RowErrorKind.GENERATION_FAILED) from error
        except Exception as error:
            if self._engine.errored:
                raise EngineDied(str(error)) from error
            raise RowError(RowErrorKind.GENERATION_FAILED, f"{type(error).__name__}: {error}") from error
        if final is None:
            raise RowError(RowErrorKind.GENERATION_FAILED, "the engine returned no output")
        answer = final.outputs[0]
        return Result(
            output=answer.text,
            finish_reason=answer.finish_reason,
            prompt_tokens=len(final.prompt_token_ids or ()),
            output_tokens=len(answer.token_ids),
            cached_tokens=final.num_cached_tokens or 0,
        )

    async def _render(self, prompt: Prompt) -> Any:
        renderer = self._engine.renderer
        kind = RowErrorKind.INVALID_PROMPT if isinstance(prompt, str) else RowErrorKind.TEMPLATE_FAILED
        try:
            if isinstance(prompt, str):
                (rendered,) = await renderer.render_cmpl_async([{"prompt": prompt}])
            else:
                _, (rendered,) = await renderer.render_chat_async([prompt], self._chat)
        except Exception as error:  # a template is a program of the model's author: it may raise anything
            raise self._row_error(error, kind) from error
        tokens = len(rendered.get("prompt_token_ids") or ())
        if tokens >= self._max_model_len:
            raise RowError(
                RowErrorKind.PROMPT_TOO_LONG,
                f"the prompt has {tokens} tokens and the context holds {self._max_model_len}, the answer included",
            )
        return rendered

    @staticmethod
    def _row_error(error: Exception, otherwise: RowErrorKind) -> RowError:
        too_long = isinstance(error, VLLMValidationError) and error.parameter in _TOO_LONG_PARAMETERS
        return RowError(RowErrorKind.PROMPT_TOO_LONG if too_long else otherwise, f"{type(error).__name__}: {error}")


def engine_arguments(settings: EngineSettings) -> dict[str, Any]:
    """Keyword arguments of AsyncEngineArgs; the model is fetched or converted first. The config's own win."""
    from cluster.config import ModelConfig, PathsConfig
    from cluster.models import prepare_model

    config = ModelConfig.model_validate(settings.model_config)
    prepared = prepare_model(settings.model, config, PathsConfig.model_validate(settings.paths), print)
    arguments: dict[str, Any] = {
        "model": prepared.path_or_id,
        "revision": prepared.revision,
        "served_model_name": settings.model,
        "max_model_len": config.max_model_len,
        "disable_log_stats": True,  # nobody scrapes them here; the job reports its own
    }
    return {name: value for name, value in (arguments | settings.engine_args).items() if value is not None}
