"""Metrics through `ray.util.metrics`: on every node's Prometheus endpoint and in Ray's dashboard, prefixed `ray_`.

Owns: names, tags, buckets. Must not know: when things happen. Import inside Ray processes only.
"""
