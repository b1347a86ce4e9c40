"""Every preset and every lever, parsed by the engines' own command-line parsers: the names and values exist there.

A parser takes what it takes without a GPU: whether the arguments work together only an engine on such hardware shows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from cluster.config import DeploymentConfig
from cluster.engines import build_spec
from cluster.engines.vllm import job_argv
from cluster.presets import PRESETS

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]
EAGLE = {"kind": "eagle3", "model": "org/draft", "tokens": 3}
LEVERS: dict[str, Any] = {
    "tensor-parallel": {"tensor_parallel": 2},
    "fp8": {"quantisation": "fp8", "kv_cache": "fp8"},
    "fp4": {"quantisation": "fp4"},
    "ngram": {"speculation": {"kind": "ngram", "tokens": 4}},
    "eagle3": {"speculation": EAGLE},
    "mtp": {"speculation": {"kind": "mtp", "tokens": 2}},
    "whole-prompts": {"chunked_prefill": 0},
    "eager": {"cuda_graphs": False, "prefix_caching": False},
    "flash": {"attention": "flash_attention"},
    "flashinfer": {"attention": "flashinfer"},
    "triton": {"attention": "triton"},
    "torch": {"attention": "torch"},
}
CASES: dict[str, Any] = {name: name for name in PRESETS} | LEVERS

# Reads {case: argv}, prints {case: null or why it was refused}. argparse ends the process: hence SystemExit.
COMMON = """
import contextlib, io, json, sys
def parse_all(parser, check):
    found = {}
    for case, argv in json.load(sys.stdin).items():
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                found[case] = check(parser.parse_args(argv))
        except SystemExit:
            found[case] = said.getvalue()[-600:]
        except Exception as error:
            found[case] = repr(error)
    print("FOUND " + json.dumps(found))
"""
VLLM = """
from typing import get_args
from vllm.config.speculative import SpeculativeConfig, SpeculativeMethod
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.attention.backends.registry import AttentionBackendEnum
def literals(annotation):
    return {v for a in get_args(annotation) for v in (literals(a) if get_args(a) else [a])}
methods = literals(SpeculativeMethod)
def check(args):
    config = args.speculative_config or {}
    unknown = set(config) - set(SpeculativeConfig.__dataclass_fields__)
    if unknown or config.get("method", "ngram") not in methods:
        return f"speculative-config: {config}"
    if args.quantization is not None and args.quantization not in QUANTIZATION_METHODS:
        return f"quantization: {args.quantization}"
    return None
parse_all(make_arg_parser(FlexibleArgumentParser()), check)
"""
SGLANG = """
import argparse
from sglang.srt.server_args import ServerArgs
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
def check(args):
    if args.speculative_algorithm not in (None, "NEXTN"):  # NEXTN is an alias that is resolved later
        SpeculativeAlgorithm.from_string(args.speculative_algorithm)
    return None
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
parse_all(parser, check)
"""


def deployment(kind: str, preset: Any, serves: str) -> DeploymentConfig:
    return DeploymentConfig.model_validate(
        {"model": "m", "serves": [serves], "engine": {"kind": kind, "preset": preset}}
    )


def parsed(program: str, cases: dict[str, list[str]]) -> dict[str, str | None]:
    done = subprocess.run(
        [sys.executable, "-c", COMMON + program],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stderr[-3000:]
    found: dict[str, str | None] = json.loads(lines[-1].removeprefix("FOUND "))
    assert found.keys() == cases.keys()
    return found


def after_the_program(kind: str, preset: Any) -> list[str]:
    spec = build_spec(deployment(kind, preset, "online"), "m", "/models/m", "127.0.0.1", 7001, "k", max_model_len=4096)
    return list(spec.argv[3:])  # python -m MODULE


def test_vllms_parser_takes_every_preset_and_lever() -> None:
    cases = {name: after_the_program("vllm", preset) for name, preset in CASES.items() if name != "torch"}
    cases |= {
        f"{name} in a job": job_argv(deployment("vllm", preset, "offline").engine_args, "m", "/models/m", 4096, None)
        for name, preset in CASES.items()
    }
    assert {case: why for case, why in parsed(VLLM, cases).items() if why is not None} == {}


def test_vllms_parser_refuses_what_does_not_exist() -> None:
    """So that the test above can fail."""
    good = after_the_program("vllm", "low-latency-h100")
    bad = {"name": [*good, "--no-such-option", "1"], "method": [*good, "--speculative-config", '{"method": "eagle9"}']}
    assert all(parsed(VLLM, bad).values())


def test_sglangs_parser_takes_every_preset_and_lever() -> None:
    cases = {name: after_the_program("sglang", preset) for name, preset in CASES.items()}
    assert {case: why for case, why in parsed(SGLANG, cases).items() if why is not None} == {}


def test_sglangs_parser_refuses_what_does_not_exist() -> None:
    good = after_the_program("sglang", "low-latency-h100")
    bad = {"name": [*good, "--no-such-option", "1"], "value": [*good, "--kv-cache-dtype", "fp7"]}
    assert all(parsed(SGLANG, bad).values())
