"""`tribes keys`: API keys and the tenants they belong to. Owns: what is printed. Must not know: queries, HTTP.

The store is used directly: keys can be made before the cluster is up, and gateways notice within seconds.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from cluster.cli.options import DEFAULT_CONFIG, ConfigOption, load
from cluster.cli.screen import console, titled_table

app = typer.Typer(no_args_is_help=True, help="API keys.")


@app.command("create")
def create(
    tenant: Annotated[str, typer.Option(help="Who the key belongs to; made when new.")],
    config: ConfigOption = DEFAULT_CONFIG,
    weight: Annotated[float | None, typer.Option(help="Share of a contended class; the others' default is 1.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Requests running at once.")] = None,
    max_queued: Annotated[int | None, typer.Option(min=0, help="Requests waiting at once.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
) -> None:
    """Make a key and print it once; weight and limits that are given change the tenant's, the rest stays."""
    loaded = load(config)
    limits = {
        "max_concurrent": max_concurrent,
        "max_queued": max_queued,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
    }
    from cluster.cli.tenants import check_name, merged_policy, open_store

    check_name(loaded, tenant)
    store = open_store(loaded)
    policy = merged_policy(store.tenants().get(tenant, {}), weight, limits)
    store.put_tenant(tenant, policy)
    key_id, secret = store.create_key(tenant)
    screen = console()
    screen.print(secret, markup=False, soft_wrap=True)
    screen.print(f"key {key_id} of tenant {tenant} (weight {policy['weight']:g}); it is shown only now", markup=False)


@app.command("list")
def list_keys(
    config: ConfigOption = DEFAULT_CONFIG,
    show_all: Annotated[bool, typer.Option("--all", help="Revoked ones too.")] = False,
) -> None:
    """Show the keys; the secrets themselves are stored nowhere."""
    from cluster.cli.tenants import open_store

    store = open_store(load(config))
    policies = store.tenants()
    table = titled_table("API keys", "id", "tenant", "weight", "created", "state")
    known = store.keys()
    for key in known:
        if key.revoked and not show_all:
            continue
        created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(key.created_at_s))
        weight = f"{policies.get(key.tenant, {}).get('weight', 1):g}"
        table.add_row(key.key_id, key.tenant, weight, created, "revoked" if key.revoked else "live")
    console().print(table if table.row_count else "no keys: `tribes keys create --tenant NAME` makes one")


@app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(help="As `tribes keys list` shows it.")],
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """End a key; gateways refuse it within seconds."""
    from cluster.cli.tenants import open_store

    open_store(load(config)).revoke_key(key_id)
    console().print(f"key {key_id} is revoked", markup=False)
