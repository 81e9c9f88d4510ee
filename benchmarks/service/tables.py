"""Renders the part `service` as Markdown: the rates, the bars, and the answers to the crowd."""

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
            render_table(["what", "bar", "measured"], judge(part)),
            "",
            f"Answered: {crowd['answered']:,}, in {_seconds(crowd['answered_p50_s'])} in the median. All answers: "
            + ", ".join(f"{kind} {count:,}" for kind, count in sorted(crowd["answers"].items()))
            + ".",
        ]
    )


def judge(part: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, limit and measured value of each bar."""
    found = {(row["name"], row["clients"]): row for row in part["steady"]}
    crowd = part["crowd"]
    more = found["service", 1]["p50_s"] - found["native", 1]["p50_s"]
    share = found["service", 16]["per_second"] / found["native", 16]["per_second"]
    first, second = crowd["halves_mb"]
    return [
        ("one client, p50 beyond native", "≤ 2 ms", f"{more * 1e3:.2f} ms"),
        ("16 clients, of the native rate", "≥ 90 %", f"{share:.0%}"),
        ("crowd: wrong answers", "0", f"{crowd['wrong']:,}"),
        ("crowd: peak memory", "≤ 400 MB", f"{crowd['peak_mb']:.0f} MB"),
        ("crowd: peaks of the first and the second half", "equal", f"{first:.0f}, {second:.0f} MB"),
        ("crowd: refused within 100 ms", "all", f"{crowd['refused_in_time']:,} of {crowd['refused']:,}"),
        ("crowd: slowest refusal", "≤ 0.1 s", _seconds(crowd["refused_max_s"])),
    ]


def _seconds(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f} s"
