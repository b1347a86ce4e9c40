"""What `tribes status` knows, as plain data: Serve's view, the dispatchers' view, Ray's jobs and the ledger's costs.

Owns: asking each source and joining what they say about one replica. Must not know: tables, the screen.
A source that does not answer becomes a line under `problems`; only without Ray there is nothing to show.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import httpx

from cluster.cli.api import RequestFailed, api_url, fetch_status
from cluster.cli.jobs import list_jobs
from cluster.config import TribesConfig
from cluster.local.auth import enable_token_auth
from cluster.local.deploy import app_details, dashboard_url
from cluster.local.keys import key_path
from cluster.scheduling.service import ServiceWeights
from cluster.state import Store, tenant_costs

MAX_JOBS = 20


def collect(config: TribesConfig, since_h: float) -> dict[str, Any]:
    """Everything about the cluster; raises LocalClusterError when Ray is not up."""
    enable_token_auth()
    problems: list[str] = []
    app = app_details(config)
    if not app:
        problems.append("the application is not deployed: `tribes up` deploys it")
    models = _models(config, problems) if app else []
    reports = {report["replica_id"]: report for model in models for report in model.get("replicas", [])}
    scaling = {name: item for model in models for name, item in model.get("scaling", {}).items()}
    return {
        "name": config.name,
        "api_url": f"{api_url(config)}/v1",
        "dashboard_url": dashboard_url(config),
        "at_s": time.time(),
        "application": {"status": app.get("status", "NOT_DEPLOYED"), "message": app.get("message", "")},
        "deployments": [
            _deployment(config, name, item, reports, scaling.get(name))
            for name, item in sorted(app.get("deployments", {}).items())
        ],
        "queues": [_queue(model) for model in models],
        "jobs": list_jobs(config, MAX_JOBS),
        "costs": costs(config, time.time() - since_h * 3600 if since_h else 0.0),
        "costs_of_last_h": since_h or None,
        "problems": problems,
    }


def costs(config: TribesConfig, since_s: float) -> list[dict[str, Any]]:
    """Each tenant's share of what the served deployments cost since a point in time."""
    store = Store(config.state.url)
    store.create()
    weights = ServiceWeights(config.scheduling.input_weight, config.scheduling.output_weight)
    try:
        shares = tenant_costs(store.usage_totals(since_s), store.replica_seconds(since_s), weights)
    finally:
        store.close()
    return [{**asdict(share), "usd_per_mtok": share.usd_per_mtok} for share in shares]


def _models(config: TribesConfig, problems: list[str]) -> list[dict[str, Any]]:
    """What the gateway reports per model; [] with a problem noted when it cannot be asked."""
    try:
        key = key_path(config).read_text().strip()
        found = fetch_status(api_url(config), key).get("models", [])
    except FileNotFoundError:
        problems.append(f"no queues: {key_path(config)} is missing; `tribes up` makes the default key")
    except (httpx.HTTPError, RequestFailed) as error:
        problems.append(
            f"no queues: the gateway at {api_url(config)} does not answer ({error or type(error).__name__})"
        )
    else:
        return list(found)
    return []


def _deployment(
    config: TribesConfig,
    name: str,
    details: dict[str, Any],
    reports: dict[str, dict[str, Any]],
    decision: dict[str, Any] | None,
) -> dict[str, Any]:
    known = config.deployments.get(name)
    replicas = [_replica(name, item, reports) for item in details.get("replicas", [])]
    return {
        "name": name,
        "status": details.get("status", "UNKNOWN"),
        "message": details.get("message", ""),
        "model": known.model if known else None,
        "engine": known.engine.kind if known else None,
        "serves": [c.value for c in known.serves] if known else [],
        "pool": known.pool if known else None,
        "min_replicas": known.replicas.min if known else None,
        "max_replicas": known.replicas.max if known else None,
        "wanted_replicas": decision["replicas"] if decision else details.get("target_num_replicas"),
        "scaling_reason": decision["reason"] if decision else None,
        "expected_start_s": decision.get("start_s") if decision else None,
        "replicas": replicas,
    }


def _replica(deployment: str, details: dict[str, Any], reports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Serve says that it exists, its own report says how the engine is; gateways have no such report."""
    replica_id = str(details.get("replica_id", ""))
    report = reports.get(f"{deployment}/{replica_id}", {})
    started_at_s = details.get("start_time_s")
    age_s = report.get("age_s", time.time() - started_at_s if started_at_s else None)
    return {
        "replica_id": replica_id,
        "node": details.get("node_ip"),
        "pid": details.get("pid"),
        "serve_state": details.get("state", "UNKNOWN"),
        "state": report.get("state", str(details.get("state", "unknown")).lower()),
        "running": report.get("running"),
        "age_s": age_s,
        "cold_start_s": report.get("cold_start_s"),
        "kv_usage": report.get("kv_usage"),
    }


def _queue(model: dict[str, Any]) -> dict[str, Any]:
    """One model's queue with a row per class and tenant."""
    rows = []
    for request_class, book in model.get("classes", {}).items():
        waiting = book.get("waiting_by_tenant", {})
        running = book.get("running_by_tenant", {})
        service = book.get("service_by_tenant", {})
        rows += [
            {
                "class": request_class,
                "tenant": tenant,
                "waiting": waiting.get(tenant, 0),
                "running": running.get(tenant, 0),
                "service": service.get(tenant, 0.0),
            }
            for tenant in sorted({*waiting, *running, *service})
        ]
    return {"model": model.get("model"), "gateways": model.get("gateways"), "tenants": rows}
