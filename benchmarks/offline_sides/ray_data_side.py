"""`ray.data.llm` as its documentation shows it, on a Ray of its own, with the batch size that keeps its engine full.

`python -m benchmarks.offline_sides.ray_data_side SETTINGS_JSON` prints one line: the time from the first row's entry
into the engine to the last row's end (the engine's start is left out, as on every side), and the tokens. Settings:
`model`, `engine_args`, `env`, `prompts` (FILE), `max_tokens`, `num_cpus`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def main(settings: dict[str, Any]) -> None:
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    ray.init(address="local", num_cpus=settings["num_cpus"], object_store_memory=300 << 20, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    running = settings["engine_args"]["max_num_seqs"]
    config = vLLMEngineProcessorConfig(
        model_source=settings["model"],
        engine_kwargs=settings["engine_args"],
        runtime_env={"env_vars": settings["env"]},
        concurrency=1,
        # Small batches in such a number that twice the engine's places are in flight: rows of a batch wait for its
        # slowest, so this is the tuned form (the default of 32 x 8 is in between).
        batch_size=16,
        max_concurrent_batches=2 * running // 16,
        max_pending_requests=2 * running,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        placement_group_config={"bundles": [{"CPU": 1}]},
    )
    sampling = {"max_tokens": settings["max_tokens"], "temperature": 0, "ignore_eos": True, "detokenize": True}
    processor = build_processor(
        config,
        preprocess=lambda row: {"prompt": row["prompt"], "sampling_params": sampling},
        postprocess=lambda row: {
            "end_s": time.time(), "took_s": row["time_taken_llm"],
            "prompt": row["num_input_tokens"], "output": row["num_generated_tokens"],
        },
    )  # fmt: skip
    prompts = json.loads(Path(settings["prompts"]).read_text())
    data = ray.data.from_items([{"prompt": prompt} for prompt in prompts], override_num_blocks=len(prompts) // 16)
    rows = processor(data).take_all()
    seconds = max(row["end_s"] for row in rows) - min(row["end_s"] - row["took_s"] for row in rows)
    prompt, output = sum(row["prompt"] for row in rows), sum(row["output"] for row in rows)
    print("SIDE " + json.dumps({"seconds": seconds, "prompt_tokens": prompt, "output_tokens": output}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
