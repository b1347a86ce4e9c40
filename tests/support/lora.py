"""A LoRA adapter of random weights, in PEFT's format, that changes what a Llama model says.

Owns: shapes and files. Must not know: engines.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

RANK = 8


def random_adapter(model: Path, folder: Path, scale: float) -> Path:
    """Adapts every layer's query projection; `scale` says by how much."""
    config = json.loads((model / "config.json").read_text())
    hidden = config["hidden_size"]
    out = config["num_attention_heads"] * config["head_dim"]
    rng = np.random.default_rng(7)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{name}.lora_A.weight"] = rng.normal(0, scale, (RANK, hidden)).astype(np.float32)
        weights[f"{name}.lora_B.weight"] = rng.normal(0, scale, (out, RANK)).astype(np.float32)
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj"],
        "bias": "none",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
