"""`tribes validate` and `tribes schema`. Owns: the summary table. Must not know: the rules of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.screen import console, titled_table

if TYPE_CHECKING:
    from rich.table import Table

    from cluster.config import DeploymentConfig, TribesConfig


def validate(config: Annotated[Path, typer.Argument(help="Configuration file.")]) -> None:
    """Check a configuration without starting anything; exit code 1 and every problem when it is wrong."""
    from cluster.config import load_config

    loaded = load_config(config)
    screen = console()
    tables = [_models(loaded), _deployments(loaded), _classes(loaded), _pools(loaded), _tenants(loaded)]
    for table in [*tables, *([_upstreams(loaded)] if loaded.upstreams else [])]:
        screen.print(table)
    screen.print(f"[green]valid[/green]: {loaded.name}, {loaded.source_path}", soft_wrap=True)


def schema() -> None:
    """Print the JSON schema of configuration files, for editors."""
    from cluster.config.jsonschema import schema_text

    typer.echo(schema_text(), nl=False)


def _models(config: TribesConfig) -> Table:
    table = titled_table("Models", "id", "source", "context")
    for name, model in config.models.items():
        fields = model.source.model_dump(mode="json", exclude_none=True)
        source = " ".join(str(value) for value in fields.values())
        table.add_row(name, source, str(model.max_model_len or "the model's own"))
    return table


def _deployments(config: TribesConfig) -> Table:
    table = titled_table(
        "Deployments", "name", "model", "engine", "classes", "pool", "a replica takes", "replicas", "slots"
    )
    for name, item in config.deployments.items():
        replicas = f"{item.replicas.min} to {item.replicas.max}"
        classes = ", ".join(c.value for c in item.serves)
        kind = f"{item.engine.kind} in the job" if item.in_process else item.engine.kind
        table.add_row(name, item.model, kind, classes, item.pool, _resources(item), replicas, str(item.max_running))
    return table


def _resources(item: DeploymentConfig) -> str:
    wanted = item.resources
    parts = [f"{wanted.cpus:g} CPU"]
    parts += [f"{wanted.gpus:g} GPU"] if wanted.gpus else []
    parts += [f"{wanted.memory_gib:g} GiB"] if wanted.memory_gib else []
    return ", ".join(parts + [f"{amount:g} {name}" for name, amount in wanted.custom.items()])


def _classes(config: TribesConfig) -> Table:
    table = titled_table("Classes", "class", "at most waiting", "for at most", "guaranteed share")
    for name, policy in config.scheduling.classes.items():
        table.add_row(name.value, str(policy.max_queued), f"{policy.max_wait_s:g} s", f"{policy.floor:.0%}")
    return table


def _pools(config: TribesConfig) -> Table:
    table = titled_table("Pools", "name", "accelerator", "labels", "USD per hour")
    for name, pool in config.pools.items():
        labels = ", ".join(f"{key}={value}" for key, value in pool.labels.items())
        table.add_row(name, pool.accelerator_type or "-", labels or "-", f"{pool.usd_per_hour:g}")
    return table


def _tenants(config: TribesConfig) -> Table:
    table = titled_table("Tenants", "name", "weight", "default tier", "limits")
    for name, tenant in config.tenants.items():
        limits = tenant.limits.model_dump(exclude_none=True)
        shown = ", ".join(f"{key} {value}" for key, value in limits.items())
        table.add_row(name, f"{tenant.weight:g}", tenant.default_tier, shown or "none")
    return table


def _upstreams(config: TribesConfig) -> Table:
    table = titled_table("Upstreams", "name", "serves", "when", "USD per Mtok", "USD a day", "tenants")
    for name, item in config.upstreams.items():
        for model, theirs in item.models.items():
            when = "always: no deployment has it" if config.only_upstream(model) else item.use.replace("_", " ")
            prices = f"{item.usd_per_mtok.input:g} in, {item.usd_per_mtok.output:g} out"
            budget = "unlimited" if item.usd_per_day is None else f"{item.usd_per_day:g}"
            tenants = "all" if item.tenants is None else ", ".join(item.tenants)
            table.add_row(name, f"{model} as {theirs}", when, prices, budget, tenants)
    return table
