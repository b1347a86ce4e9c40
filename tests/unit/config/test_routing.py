"""scheduling.routing: its bounds, and for which requests gateways hash prompts."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config import TribesConfig
from cluster.vocabulary import RequestClass

ONLINE, SEMI, OFFLINE = RequestClass


def config(scheduling: dict[str, Any], **replicas: int) -> TribesConfig:
    """A deployment of `m` for online, as many replicas as said; `burst` serves semi_online and lends to online."""
    return TribesConfig.model_validate(
        {
            "models": {"m": {"source": {"kind": "local", "path": "/nowhere"}}},
            "deployments": {
                name: {
                    "model": "m",
                    "serves": ["semi_online", "online"] if name == "burst" else ["online"],
                    "engine": {"kind": "vllm"},
                    "replicas": {"max": most},
                }
                for name, most in replicas.items()
            },
            "scheduling": scheduling,
        }
    )


def test_prompts_are_hashed_where_there_is_a_choice_and_it_is_asked_for() -> None:
    asked = {"routing": {"prefix": True}}
    assert not config({}, d=4).looks_at_prefixes("m", ONLINE)
    assert config(asked, d=4).looks_at_prefixes("m", ONLINE)
    assert not config(asked, d=4).looks_at_prefixes("m", SEMI)
    assert not config(asked, d=1).looks_at_prefixes("m", ONLINE)
    both = config(asked, d=1, burst=1)
    assert both.looks_at_prefixes("m", ONLINE) and not both.looks_at_prefixes("m", SEMI)
    assert config({"fairness": "dlpm"}, d=1).looks_at_prefixes("m", ONLINE)


@pytest.mark.parametrize("wrong", [{"load_factor": 1.0}, {"stay_s": -1}, {"stay_s": 61}, {"prefixes": True}], ids=str)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        config({"routing": wrong}, d=2)
