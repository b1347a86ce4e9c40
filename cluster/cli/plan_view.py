"""The tables of `tribes plan`. Owns: which figures are shown, and their units. Must not know: how they were found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.cli.screen import titled_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from cluster.planning import Candidate, ClassPlan, Plan


def show(screen: Console, plan: Plan) -> None:
    from rich.text import Text

    screen.print(_chosen(plan))
    for item in plan.classes:
        screen.print(_alternatives(item))
        if item.mixed:
            screen.print(Text(_mixed(item)), soft_wrap=True)
        if item.hosted:
            screen.print(_hosted(item))
        for line in item.counsel:
            screen.print(Text(f"{item.request_class.value}: {line}", style="dim"), soft_wrap=True)
    for line in plan.notes:
        screen.print(Text(line, style="dim"), soft_wrap=True)


def _chosen(plan: Plan) -> Table:
    title = f"{plan.model}, {plan.parameters / 1e9:.1f} billion parameters: {plan.usd_per_hour:.2f} USD/h in all"
    columns = ("replicas", "TTFT p50/p99 s", "ITL ms", "tok/s", "used", "USD/Mtok", "USD/h")
    table = titled_table(title, "class", "a replica", "engine", *columns, right=columns)
    for item in plan.classes:
        best = item.chosen
        if best is None:
            table.add_row(item.request_class.value, "nothing can serve it", *["-"] * 8)
            continue
        table.add_row(item.request_class.value, best.shape.title, best.shape.engine, *_figures(best))
    return table


def _figures(best: Candidate) -> list[str]:
    replicas = f"{best.floor} to {best.replicas}" if best.floor < best.replicas else str(best.replicas)
    point = best.point
    latency = [f"{point.ttft_p50_s:.2f}/{point.ttft_p99_s:.2f}", f"{point.itl_s * 1e3:.1f}"] if point else ["-", "-"]
    return [
        replicas,
        *latency,
        f"{best.tokens_per_s:,.0f}",
        f"{best.utilisation:.0%}",
        f"{best.usd_per_mtok:.3f}",
        f"{best.usd_per_hour:.2f}",
    ]


def _alternatives(item: ClassPlan) -> Table:
    from rich.text import Text

    from cluster.planning.search import best_per_accelerator

    title = f"{item.request_class.value}: the best of each accelerator"
    table = titled_table(title, "a replica", "replicas", "USD/h", "why not", right=("replicas", "USD/h"))
    found = [item.chosen, *item.alternatives] if item.chosen else list(item.alternatives)
    for candidate in best_per_accelerator(found).values():
        figures = (str(candidate.replicas), f"{candidate.usd_per_hour:.2f}") if candidate.feasible else ("-", "-")
        why = Text(candidate.verdict) if candidate.verdict else Text(f"chosen ({candidate.basis})", style="green")
        table.add_row(candidate.shape.title, *figures, why)
    return table


def _mixed(item: ClassPlan) -> str:
    mixed = item.mixed
    assert mixed
    parts = " and ".join(f"{count} of {mixed.shapes[name].title}" for name, count in mixed.fleet.counts.items())
    proof = "" if mixed.fleet.proven else " (the best found, not proven the cheapest)"
    saved = 1 - mixed.usd_per_hour / mixed.single_usd_per_hour if mixed.single_usd_per_hour else 0
    return (
        f"{item.request_class.value}: a mixed fleet of {parts} would cost {mixed.usd_per_hour:.2f} USD/h, {saved:.0%} "
        f"less than the best single type with sizes kept apart{proof}"
    )


def _hosted(item: ClassPlan) -> Table:
    right = ("USD/h there", "own from")
    table = titled_table(f"{item.request_class.value}: hosted", "API", *right, "cheaper now", right=right)
    for api in item.hosted:
        share = api.break_even_utilisation
        own_from = f"{share:.0%} used" if share <= 1 else "never"
        table.add_row(api.name, f"{api.usd_per_hour:.2f}", own_from, "own" if api.cheaper == "self" else api.name)
    return table
