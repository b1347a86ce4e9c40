"""`tribes up`, `down` and `status`. Owns: what they print. Must not know: Ray, processes, HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.options import DEFAULT_CONFIG, ConfigOption, load
from cluster.cli.screen import Progress, console

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.config import TribesConfig


def up(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Start Ray on this machine (or join ray.address), deploy every model, and wait until they answer."""
    loaded = load(config)
    from cluster.local.up import up as start

    screen = console()
    with Progress(screen) as progress:
        started = start(loaded, progress)
    print_started(screen, loaded, started.api_key, started.reused)


def print_started(screen: Console, config: TribesConfig, key: str, reused: bool) -> None:
    """Where the cluster is and how to send it a first request."""
    from cluster.cli.api import api_url
    from cluster.local.deploy import dashboard_url

    url = api_url(config)
    screen.print(f"\n[green]{config.name} is {'up already' if reused else 'up'}[/green]")
    for name, value in (("API", f"{url}/v1"), ("dashboard", dashboard_url(config)), ("default key", key)):
        screen.print(f"  {name:<12} {value}", markup=False, soft_wrap=True)
    for item in list(config.serving().values())[:1]:
        print_example(screen, url, key, item.model)
    screen.print("next: tribes chat | tribes status | tribes down")


def print_example(screen: Console, url: str, key: str, model: str) -> None:
    screen.print(
        f"\ncurl {url}/v1/chat/completions -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\\n"
        f'  -d \'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}\'\n',
        markup=False,
        soft_wrap=True,
    )


def down(
    config: ConfigOption = DEFAULT_CONFIG,
    grace_s: Annotated[float, typer.Option(min=0, help="How long running requests may finish.")] = 30.0,
) -> None:
    """Stop the application and the local Ray; nothing is left behind."""
    loaded = load(config)
    from cluster.local.up import down as stop

    screen = console()
    with Progress(screen) as progress:
        stopped = stop(loaded, grace_s, progress)
    screen.print(f"{loaded.name} is down" if stopped else f"nothing to stop: {loaded.name} is not running")


def status(
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: Annotated[bool, typer.Option("--json", help="Plain data for other programs.")] = False,
    since_h: Annotated[float, typer.Option(min=0, help="Costs of the last so many hours; 0 = all.")] = 24.0,
) -> None:
    """Show deployments, replicas, queues, jobs and costs."""
    loaded = load(config)
    from cluster.cli.status_data import collect

    found = collect(loaded, since_h)
    if as_json:
        import json

        typer.echo(json.dumps(found, indent=2))
    else:
        from cluster.cli.status_view import render

        render(console(), found)
