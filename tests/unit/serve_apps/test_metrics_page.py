"""Merging the Prometheus pages of several nodes."""

from __future__ import annotations

from serve_apps.gateway.apis.metrics_page import merge

HEAD = "# HELP ray_tribes_requests_total Finished requests\n# TYPE ray_tribes_requests_total counter\n"
A = (
    HEAD + 'ray_tribes_requests_total{Component="core_worker",NodeAddress="10.0.0.1",SessionName="s",Version="2.6",'
    'WorkerId="w1",model="m",tenant="a"} 3.0\n'
    '# HELP ray_node_cpu CPU\n# TYPE ray_node_cpu gauge\nray_node_cpu{NodeAddress="x"} 1.0\n'
)
B = (
    "# HELP ray_tribes_wait_seconds Wait\n# TYPE ray_tribes_wait_seconds histogram\n"
    'ray_tribes_wait_seconds_bucket{le="0.1",WorkerId="w2",Version="2.6"} 1.0\n'
    'ray_tribes_wait_seconds_count{WorkerId="w2"} 1.0\n'
    + HEAD
    + 'ray_tribes_requests_total{WorkerId="w2",model="m",tenant="b"} 4.0\n'
)


def test_samples_are_grouped_under_one_head() -> None:
    assert merge([A, B, ""]) == (
        HEAD + 'ray_tribes_requests_total{WorkerId="w1",model="m",tenant="a"} 3.0\n'
        'ray_tribes_requests_total{WorkerId="w2",model="m",tenant="b"} 4.0\n'
        "# HELP ray_tribes_wait_seconds Wait\n# TYPE ray_tribes_wait_seconds histogram\n"
        'ray_tribes_wait_seconds_bucket{le="0.1",WorkerId="w2"} 1.0\n'
        'ray_tribes_wait_seconds_count{WorkerId="w2"} 1.0\n'
    )


def test_prometheus_can_read_it() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    families = {family.name: family for family in text_string_to_metric_families(merge([A, B]))}
    assert {s.labels["tenant"]: s.value for s in families["ray_tribes_requests"].samples} == {"a": 3.0, "b": 4.0}


def test_pages_that_are_not_quite_prometheus() -> None:
    assert merge([A + "# EOF\n", "#\n# \n", "<html>busy</html>"]) == merge([A])
    assert merge([]).strip() == ""
