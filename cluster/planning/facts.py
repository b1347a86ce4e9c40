"""Role: what a model's shape means for time and memory. Owns: reading a Hugging Face config.json, counting parameters.

Must not know: hardware, engines, where the file lies. Counts are exact for the common decoder-only families: attention
with shared keys and values (GQA), DeepSeek's compressed ones (MLA), gated and plain MLPs, mixtures of experts. Biases
and norms are counted where they are part of every layer; what is left out is far below a tenth of a percent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Stored = Literal["16bit", "fp8", "fp4", "int4"]

_PLAIN_MLP: Final = {"opt", "gpt2", "gpt_neox", "gptj", "bloom", "mpt", "falcon", "phi", "starcoder2", "codegen"}
"""Two matrices a layer; all others have the gated form with three."""
_OTHER_MIXERS: Final = {"mamba", "mamba2", "jamba", "zamba2", "rwkv", "recurrent_gemma", "bamba", "nemotron_h"}


class ModelFactsError(ValueError):
    """A model that cannot be planned for; the message names the cure."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes of a model. "Active" is what one token passes through."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    """Into how many parts tensor parallelism can split the KV cache; 1 for MLA, which every GPU holds whole."""
    layer_parameters: int
    active_layer_parameters: int
    head_parameters: int
    """The matrix that turns a state into a distribution over the vocabulary."""
    embedding_parameters: int
    """0 where it is the head's matrix."""
    kv_numbers_per_token: int
    """What a token leaves in the cache of the layers that keep everything."""
    attention_width: int
    """Heads times their size: attention over c tokens costs 4 x layers x this x c operations a token."""
    vocabulary: int
    max_context: int
    experts: int = 0
    experts_per_token: int = 0
    window_tokens: int = 0
    windowed_numbers_per_token: int = 0
    """The same for layers that keep the last `window_tokens` only."""
    stored: Stored = "16bit"

    @property
    def parameters(self) -> int:
        return self.layer_parameters + self.head_parameters + self.embedding_parameters

    @property
    def active_parameters(self) -> int:
        return self.active_layer_parameters + self.head_parameters + self.embedding_parameters

    def kv_numbers(self, context_tokens: float) -> float:
        """In the cache of one sequence of that length."""
        kept = min(context_tokens, self.window_tokens)
        return self.kv_numbers_per_token * context_tokens + self.windowed_numbers_per_token * kept


def facts_from_config(config: Mapping[str, Any]) -> ModelFacts:
    """Of a config.json as transformers writes it; the text part of a multimodal one."""
    text = config.get("text_config")
    merged = {**config, **text} if isinstance(text, Mapping) else dict(config)
    if merged.get("model_type") in _OTHER_MIXERS or "linear_attention" in (merged.get("layer_types") or ()):
        raise ModelFactsError(
            f"model_type {merged.get('model_type')!r} has layers that are not attention, which the planner cannot "
            "count; calibrate it where it runs (`tribes calibrate`) and size it by hand"
        )
    return _Reader(merged).facts()


class _Reader:
    """The keys of one config.json, under the names that families use."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self.hidden = self._int("hidden_size", "n_embd", "d_model")
        self.layers = self._int("num_hidden_layers", "n_layer", "n_layers")
        self.heads = self._int("num_attention_heads", "n_head", "n_heads")
        self.kv_heads = self._int("num_key_value_heads", "num_kv_heads", default=self.heads)
        self.head_size = self._int("head_dim", default=self.hidden // self.heads)
        self.experts = self._int("num_local_experts", "num_experts", "n_routed_experts", default=0)

    def facts(self) -> ModelFacts:
        expert_layers = self._expert_layers()
        dense_layers = self.layers - expert_layers
        attention = self.layers * (self._attention() + 2 * self.hidden)
        dense = dense_layers * self._mlp(self._inner()) if dense_layers else 0
        expert = self._mlp(self._expert_inner()) if self.experts else 0
        taken = self._experts_per_token() if self.experts else 0
        shared = self._shared_experts() + self.hidden * self.experts  # and the router
        vocabulary = self._int("vocab_size")
        windowed = self._windowed_layers()
        per_layer = self._kv_numbers_per_layer()
        return ModelFacts(
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            kv_heads=1 if self._latent() else self.kv_heads,
            layer_parameters=attention + dense + expert_layers * (self.experts * expert + shared) + self.hidden,
            active_layer_parameters=attention + dense + expert_layers * (taken * expert + shared) + self.hidden,
            head_parameters=vocabulary * self.hidden,
            embedding_parameters=0 if self._config.get("tie_word_embeddings") else vocabulary * self.hidden,
            kv_numbers_per_token=per_layer * (self.layers - windowed),
            attention_width=self.heads * self.head_size,
            vocabulary=vocabulary,
            max_context=self._int("max_position_embeddings", "n_positions", "max_seq_len", default=2048),
            experts=self.experts,
            experts_per_token=taken,
            window_tokens=self._int("sliding_window", default=0) if windowed else 0,
            windowed_numbers_per_token=per_layer * windowed,
            stored=_stored(self._config.get("quantization_config")),
        )

    def _attention(self) -> int:
        """Parameters of one layer's four projections."""
        latent = self._latent()
        if not latent:
            wide, narrow = self.heads * self.head_size, self.kv_heads * self.head_size
            bias = wide + 2 * narrow if self._config.get("model_type") in ("qwen2", "qwen2_moe") else 0
            return 2 * self.hidden * wide + 2 * self.hidden * narrow + bias
        rope, plain, value = self._int("qk_rope_head_dim"), self._int("qk_nope_head_dim"), self._int("v_head_dim")
        query_rank = self._int("q_lora_rank", default=0)
        query_out = self.heads * (plain + rope)
        query = self.hidden * query_rank + query_rank * query_out if query_rank else self.hidden * query_out
        keys = self.hidden * (latent + rope) + latent * self.heads * (plain + value)
        return query + keys + self.heads * value * self.hidden

    def _kv_numbers_per_layer(self) -> int:
        latent = self._latent()
        return latent + self._int("qk_rope_head_dim") if latent else 2 * self.kv_heads * self.head_size

    def _latent(self) -> int:
        return self._int("kv_lora_rank", default=0)

    def _mlp(self, inner: int) -> int:
        matrices = 2 if self._config.get("model_type") in _PLAIN_MLP else 3
        return matrices * self.hidden * inner

    def _inner(self) -> int:
        return self._int("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", default=4 * self.hidden)

    def _expert_inner(self) -> int:
        return self._int("moe_intermediate_size", "expert_intermediate_size", default=0) or self._inner()

    def _experts_per_token(self) -> int:
        return self._int("num_experts_per_tok", "experts_per_token", "moe_topk", "moe_top_k")

    def _shared_experts(self) -> int:
        width = self._int("shared_expert_intermediate_size", default=0)
        return self._mlp(width) if width else self._int("n_shared_experts", default=0) * self._mlp(self._expert_inner())

    def _expert_layers(self) -> int:
        if not self.experts:
            return 0
        step = self._int("decoder_sparse_step", "moe_layer_freq", "interleave_moe_layer_step", default=1) or 1
        dense = set(self._config.get("mlp_only_layers") or ()) | set(
            range(self._int("first_k_dense_replace", default=0))
        )
        return sum(1 for layer in range(self.layers) if layer not in dense and (layer + 1) % step == 0)

    def _windowed_layers(self) -> int:
        if not self._int("sliding_window", default=0):
            return 0
        kinds = self._config.get("layer_types")
        if kinds:
            return sum(1 for kind in kinds if kind == "sliding_attention")
        # Without a list, only families that slide in every layer are known to slide at all.
        return self.layers if self._config.get("model_type") == "mistral" else 0

    def _int(self, *names: str, default: int | None = None) -> int:
        for name in names:
            value = self._config.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        if default is None:
            raise ModelFactsError(
                f"config.json has no {' or '.join(names)}; give the one of a decoder-only transformer, as in the "
                "folder that an engine loads"
            )
        return default


def _stored(quantisation: object) -> Stored:
    """How the checkpoint's own files hold the weights."""
    if not isinstance(quantisation, Mapping):
        return "16bit"
    method = str(quantisation.get("quant_method", "")).lower()
    text = str(quantisation).lower()
    if "nvfp4" in text or "mxfp4" in text or "fp4" in method:
        return "fp4"
    if method in ("awq", "gptq", "awq_marlin", "gptq_marlin", "bitsandbytes"):
        return "int4" if "8" not in str(quantisation.get("bits", 4)) else "fp8"
    return "fp8"
