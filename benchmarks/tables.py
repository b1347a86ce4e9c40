"""README's figures from committed results: `python -m benchmarks.tables` rewrites what stands between the markers.

`<!-- results:NAME -->` ... `<!-- /results -->` in README.md is replaced by the table of benchmarks/results/NAME.json;
`--check` fails when a table is not what its file says. Owns: the tables. Must not know: how things are measured.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.fairness_sides.table import arena_table, live_table
from benchmarks.gateway_sides.table import doors_table
from benchmarks.routing_live_sides.table import routing_live_table
from benchmarks.routing_sides.table import routing_table

REPO = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
_OWN = {
    "fairness": (arena_table, live_table),
    "gateway": (doors_table,),
    "routing": (routing_table,),
    "routing_live": (routing_live_table,),
}
_BLOCK = re.compile(r"(<!-- results:([\w-]+) -->\n).*?(<!-- /results -->)", re.DOTALL)


def main(
    check: Annotated[bool, typer.Option(help="Change nothing; fail when a table is out of date.")] = False,
) -> None:
    stale = [page for page in [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))] if not _update(page, check)]
    if check and stale:
        typer.echo(f"out of date: {', '.join(p.name for p in stale)}; run python -m benchmarks.tables", err=True)
        raise typer.Exit(1)


def render(page: str) -> str:
    """The page with every results block filled from its file."""
    return _BLOCK.sub(lambda m: f"{m[1]}{table(json.loads((RESULTS / f'{m[2]}.json').read_text()))}{m[3]}", page)


def table(result: dict[str, Any]) -> str:
    """One row a ratio: median, spread, bar; before it, what only this benchmark has to show."""
    machine, versions = result["machine"], result["versions"]
    lines = [line for own in _OWN.get(result["benchmark"], ()) if (rows := own(result)) for line in (*rows, "")]
    lines += ["| figure | median | min to max | bar |", "|---|---|---|---|"]
    for name, ratio in result["ratios"].items():
        bar = result["bars"].get(name)
        shown = f"{bar['need']}: {'holds' if bar['holds'] else 'missed'}" if bar else "-"
        lines.append(f"| `{name}` | {ratio['median']:.4g} | {ratio['min']:.4g} to {ratio['max']:.4g} | {shown} |")
    pairs = 1 + max(run["pair"] for run in result["runs"])
    shown_versions = ", ".join(f"{name} {version}" for name, version in versions.items())
    where = f"{machine['cpus']} CPUs ({machine['processor']}), {machine['memory_gib']} GiB"
    return "\n".join([*lines, "", f"{pairs} pairs in one run, `{result['command']}`; {where}; {shown_versions}.", ""])


def _update(page: Path, check: bool) -> bool:
    if not page.exists():
        return True
    before = page.read_text()
    after = render(before)
    if not check:
        page.write_text(after)
    return before == after


if __name__ == "__main__":
    typer.run(main)
