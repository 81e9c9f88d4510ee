"""Renders the part `service` as Markdown: the rates, and the answers to the crowd."""

from collections.abc import Mapping
from typing import Any, Final

from benchmarks.markdown import render_table

NAMES: Final = {
    "native": "classifier, a thread for each caller",
    "service": "`plantmodels serve`",
    "mlflow": "`mlflow models serve`",
    "echo": "bare uvicorn, answers nothing",
}


def render_service(part: Mapping[str, Any]) -> str:
    """Return the part as Markdown."""
    plan, crowd = part["plan"], part["crowd"]
    head = ["what", "clients", "answers a second", "p50, ms", "p95, ms", "server's CPU, ms", "clients' CPU, ms"]
    rows = [
        [
            NAMES[row["name"]],
            str(row["clients"]),
            f"{row['per_second']:.0f}",
            *(f"{row[key] * 1e3:.2f}" for key in ("p50_s", "p95_s", "server_s", "client_s")),
        ]
        for row in sorted(part["steady"], key=lambda row: (row["clients"], list(NAMES).index(row["name"])))
    ]
    foreign = max(row["foreign"] for row in part["steady"])
    return "\n".join(
        [
            "### Service",
            "",
            f"Medians of {plan['rounds']} turns of {plan['seconds']:g} s. Clients keep their connections, run in a "
            f"process of their own, and share the cores with the server. In the worst turn, other programs took "
            f"{foreign:.0%} of the cores.",
            "",
            render_table(head, rows),
            "",
            f"{plan['crowd_clients']} clients ask for {plan['crowd_seconds']:g} s with photographs of 4 MB. A third "
            f"send malformed requests, an eighth send slowly, and an eighth close the connection early. Other programs "
            f"took {crowd['foreign']:.0%} of the cores.",
            "",
            render_table(
                ["crowd", "requests", "median, s", "slowest, s"],
                [_make_crowd_row(crowd, "answered"), _make_crowd_row(crowd, "refused")],
            ),
            "",
            f"Wrong answers: {crowd['wrong']:,}. By kind of client and status: "
            + ", ".join(f"{kind} {count:,}" for kind, count in sorted(crowd["answers"].items()))
            + ".",
        ]
    )


def _make_crowd_row(crowd: Mapping[str, Any], outcome: str) -> list[str]:
    times = (crowd[f"{outcome}_p50_s"], crowd[f"{outcome}_max_s"])
    return [outcome, f"{crowd[outcome]:,}", *("" if value is None else f"{value:.3f}" for value in times)]
