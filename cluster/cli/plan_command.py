"""`tribes plan`: which hardware a model needs for its work. Owns: options, files written. Must not know: formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.errors import UsageError
from cluster.cli.screen import Progress, console, error_console


def plan(
    workload: Annotated[Path, typer.Argument(help="Model, rates, lengths or trace, targets, prices: YAML.")],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A cluster that knows the model, pool prices and upstreams.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything there, for programs.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write a configuration for `tribes up` there.")] = None,
    calibrations: Annotated[
        Path | None, typer.Option(help="Folder of `tribes calibrate`; default: the one in the user's cache.")
    ] = None,
    kernels: Annotated[bool, typer.Option(help="Use aiconfigurator-core's measured kernels if installed.")] = True,
) -> None:
    """Find the cheapest deployment for each class of a workload, and say why the others lose."""
    from cluster.cli.plan_view import show
    from cluster.config import load_config
    from cluster.planning import ModelFactsError, calibrations_folder, completed, load_request
    from cluster.planning import plan as make_plan
    from cluster.planning.calibration import CalibrationError, read_all
    from cluster.planning.emit import write_config
    from cluster.planning.kernels import KernelTimesError
    from cluster.simulation.workload import TraceError

    cluster = load_config(config) if config else None
    request = completed(load_request(workload), cluster)
    try:
        with Progress(error_console()) as progress:
            progress(f"planning {request.model.name}")
            made = make_plan(
                request,
                read_all(calibrations or calibrations_folder()),
                cluster.paths if cluster else None,
                use_kernels=kernels,
            )
    except (ModelFactsError, CalibrationError, KernelTimesError, TraceError) as error:
        raise UsageError(str(error)) from error
    show(console(), made)
    if json_file:
        _write_json(json_file, made)
    if out:
        write_config(made, request, out, cluster)
        console().print(f"written: {out}; look at it with `tribes explain {out}`", soft_wrap=True)
    if not all(item.chosen for item in made.classes):
        raise typer.Exit(1)


def _write_json(path: Path, made: object) -> None:
    import json
    from dataclasses import asdict
    from math import isfinite
    from typing import Any

    def plain(value: Any) -> Any:
        """JSON has no infinity."""
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not isfinite(value) else value

    content = plain(asdict(made))  # type: ignore[call-overload]
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
