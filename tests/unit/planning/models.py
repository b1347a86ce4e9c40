"""Shapes of public models, as their config.json says them, and a workload to bend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
}
LLAMA_70B: dict[str, Any] = {
    **LLAMA_8B,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
}
MIXTRAL: dict[str, Any] = {
    **LLAMA_8B,
    "model_type": "mixtral",
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 32768,
}
DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 129280,
    "tie_word_embeddings": False,
    "max_position_embeddings": 163840,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3"},
}

WORKLOAD: dict[str, Any] = {
    "model": {
        "name": "llama-3.1-8b",
        "source": {"kind": "huggingface", "id": "meta-llama/Llama-3.1-8B-Instruct"},
        "config": "config.json",
        "max_model_len": 16384,
    },
    "classes": {
        "online": {
            "requests_per_s": 10,
            "lengths": [
                {"prompt_tokens": 500, "output_tokens": 150, "share": 3},
                {"prompt_tokens": 4000, "output_tokens": 300},
            ],
            "slo": {"ttft_s": 1.0, "itl_s": 0.03},
        }
    },
    "usd_per_gpu_hour": {"H100": 3.2, "A100-80G": 1.8, "L4": 0.3},
}


def write_workload(folder: Path, workload: dict[str, Any], model: dict[str, Any] = LLAMA_8B) -> Path:
    (folder / "config.json").write_text(json.dumps(model))
    path = folder / "workload.yaml"
    path.write_text(yaml.safe_dump(workload, sort_keys=False))
    return path


def with_classes(**classes: Any) -> dict[str, Any]:
    return {**WORKLOAD, "classes": classes}
