"""Renders the part `scale` as Markdown."""

from collections.abc import Mapping
from typing import Any

from benchmarks.markdown import render_table


def render_scale(part: Mapping[str, Any]) -> str:
    """Return the part as a table: seconds, processor time and memory of each step."""
    plan = part["plan"]
    few, many = f"{plan['few_species']:,} species", f"{plan['species']:,} species"
    steps = {
        "register_few_as_mlflow": f"register {few}, files sent and read as MLflow does it",
        "register_few": f"register {few}",
        "register": f"register {many}",
        "load": f"load {many}",
        "verify": f"verify {many} with a few leaves",
        "listing": f"list {plan['files']:,} files by URI",
    }
    rows = [
        (
            title,
            f"{part[name]['wall_s']:.2f}",
            f"{part[name]['cpu_s']:.2f}",
            _show(part[name], "server_cpu_s") if name.startswith("register") else "",
            _show(part[name], "silent_s"),
            _show(part[name], "added_mb"),
            _show(part[name], "loading_mb") or _show(part[name], "peak_mb"),
        )
        for name, title in steps.items()
    ]
    head = ["what grows", "s", "CPU, s", "server's CPU, s", "longest without a bar that moves, s", "MB", "peak MB"]
    note = (
        "MB is the memory that the loaded bundle adds. The peak is what loading adds while it runs, and all memory of "
        "the process that verifies."
    )
    return f"### Scale\n\n{render_table(head, rows)}\n\n{note}"


def _show(step: Mapping[str, Any], key: str) -> str:
    return f"{step[key]:.0f}" if key.endswith("_mb") and key in step else f"{step[key]:.2f}" if key in step else ""
