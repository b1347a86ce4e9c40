"""Request classes and service tiers map to each other the way DESIGN's vocabulary says."""

from __future__ import annotations

import json

import pytest

from cluster.vocabulary import BATCH_TIER, SERVICE_TIERS, RequestClass, class_of_tier, tier_of_class


@pytest.mark.parametrize(
    ("tier", "expected"),
    [
        ("default", RequestClass.ONLINE),
        ("priority", RequestClass.ONLINE),
        ("flex", RequestClass.SEMI_ONLINE),
        ("batch", RequestClass.OFFLINE),
    ],
)
@pytest.mark.parametrize("auto_tier", ["default", "flex"])
def test_a_named_tier_means_the_same_whatever_auto_means(tier, expected, auto_tier):
    assert class_of_tier(tier, auto_tier) is expected


def test_auto_means_what_the_operator_chose():
    assert class_of_tier("auto", "default") is RequestClass.ONLINE
    assert class_of_tier("auto", "flex") is RequestClass.SEMI_ONLINE
    assert class_of_tier("auto") is RequestClass.ONLINE


@pytest.mark.parametrize("request_class", list(RequestClass))
def test_the_tier_of_a_class_leads_back_to_it(request_class):
    assert class_of_tier(tier_of_class(request_class)) is request_class
    assert tier_of_class(request_class.value) == tier_of_class(request_class)


def test_tier_names_per_class():
    assert [tier_of_class(item) for item in RequestClass] == ["default", "flex", "batch"]


def test_clients_cannot_ask_for_the_batch_tier():
    assert BATCH_TIER not in SERVICE_TIERS
    assert set(SERVICE_TIERS) == {"auto", "default", "priority", "flex"}


def test_an_unknown_tier_names_the_choices():
    with pytest.raises(ValueError, match=r"unknown service_tier 'fast'; use one of auto, default, priority, flex"):
        class_of_tier("fast")


@pytest.mark.parametrize("auto_tier", ["auto", "batch", "fast"])
def test_auto_cannot_mean_itself_or_batch(auto_tier):
    with pytest.raises(ValueError, match=rf"auto_tier '{auto_tier}' .*use one of default, priority, flex"):
        class_of_tier("auto", auto_tier)


def test_an_unknown_class_names_the_choices():
    with pytest.raises(ValueError, match=r"unknown request class 'onlin'; use one of online, semi_online, offline"):
        tier_of_class("onlin")


def test_a_request_class_is_plain_text_in_json():
    assert json.dumps({RequestClass.SEMI_ONLINE: RequestClass.ONLINE}) == '{"semi_online": "online"}'
