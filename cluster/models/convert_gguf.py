"""Role: the process that converts: `python -P convert_gguf.py FILE.gguf FOLDER DTYPE`, run by package_gguf.py.

Owns: dequantised weights, tokenizer and generation settings of one GGUF file, as a Hugging Face folder. Must not know:
the rest of Tribes, which it does not import.
"""

from __future__ import annotations

import sys
from pathlib import Path


def convert(gguf: Path, folder: Path, dtype_name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    dtype = getattr(torch, dtype_name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise SystemExit(
            f"torch_dtype {dtype_name!r} is no floating-point type of torch; use bfloat16, float16 or float32"
        )
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=dtype, quantization_config=GgufConfig(dequantize=True))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
