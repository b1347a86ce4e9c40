"""What an engine's last words are taken to mean. The lines are the engines' own."""

from __future__ import annotations

import pytest

from cluster.engines.diagnosis import diagnose


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "out_of_memory"),
        ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", "out_of_memory"),
        (
            "ValueError: To serve at least one request with the models's max seq len (131072), 16.00 GiB KV cache is "
            "needed, which is larger than the available KV cache memory (2.1 GiB).",
            "kv_cache_too_small",
        ),
        ("ValueError: No available memory for the cache blocks.", "kv_cache_too_small"),
        ("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.", "kv_cache_too_small"),
        ("OSError: /models/x does not appear to have a file named config.json.", "model_not_found"),
        ("huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached", "model_not_found"),
        ("OSError: [Errno 98] Address already in use", "port_in_use"),
        ("ERROR: [Errno 98] error while attempting to bind on address ('127.0.0.1', 7001)", "port_in_use"),
        ("api_server.py: error: unrecognized arguments: --max-modle-len 7", "unknown_argument"),
        ("launch_server.py: error: argument --tp-size: invalid int value: 'two'", "bad_argument"),
        ("/usr/bin/python: No module named vllm", "engine_missing"),
        (
            "/usr/bin/python: Error while finding module specification for 'vllm.entrypoints.openai.api_server' "
            "(ModuleNotFoundError: No module named 'vllm')",
            "engine_missing",
        ),
        ("guard: cannot start /opt/none/python: No such file or directory", "no_interpreter"),
        ("RuntimeError: operator torchvision::nms does not exist", "mixed_builds"),
        ("RuntimeError: Found no NVIDIA driver on your system.", "no_accelerator"),
    ],
)
def test_known_failures(line, kind):
    verdict = diagnose(["INFO starting", line, "Traceback (most recent call last):"], 1)
    assert verdict is not None
    assert verdict.kind == kind
    assert verdict.cure


def test_a_kill_without_words_points_at_memory():
    verdict = diagnose(["INFO loading"], 137)
    assert verdict is not None and verdict.kind == "killed"


def test_the_unknown_stays_unknown():
    assert diagnose(["INFO loading", "max_total_num_tokens=20000"], 1) is None
    assert diagnose([], None) is None
