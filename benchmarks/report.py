"""Render a result as Markdown.

print(render(result))
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.bars import judge_bars
from benchmarks.driver import QUIET
from benchmarks.intake.scoring import render_scoring
from benchmarks.markdown import render_table
from benchmarks.one_file import BATCH, WAYS
from benchmarks.scale.tables import render_scale
from benchmarks.service.tables import render_service
from benchmarks.speed import BULK, best_entry
from benchmarks.threads import render_threads

_LOADERS = {"native": "native, to the first prediction", "pyfunc": "pyfunc, to the first prediction"}


def render(result: Mapping[str, Any]) -> str:
    """Return the result as Markdown; a part that did not run is left out."""
    parts = [_render_machine(result["machine"]), _render_bars(result)]
    if part := result.get("speed"):
        parts += [_render_speed(part), _render_batches(part), _render_steps(part)]
    if part := result.get("species"):
        parts.append(_render_species(part))
    if part := result.get("cold"):
        parts.append(_render_cold(part))
    if part := result.get("service"):
        parts.append(render_service(part))
    if part := result.get("scoring"):
        parts.append(render_scoring(part))
    if part := result.get("scale"):
        parts.append(render_scale(part))
    if part := result.get("one-file"):
        parts.append(_render_one_file(part))
    if part := result.get("threads"):
        parts.append(render_threads(part))
    parts.append(_render_building(result))
    return "\n\n".join(part for part in parts if part) + "\n"


def _render_machine(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    virtual = ", a virtual machine" if machine["hypervisor"] else ""
    return (
        f"{machine['cpu']} (family/model/stepping {machine['family']}), {machine['cores']} cores{virtual}, "
        f"{machine['memory_gb']} GB; {', '.join(machine['features'])}. Linux {machine['kernel']}, "
        f"Python {machine['python']}, {versions}. Commit {machine['commit']}, {machine['date']}."
    )


def _render_bars(result: Mapping[str, Any]) -> str:
    def number(value: float, unit: str) -> str:
        return f"{value:.3g}{unit}"

    rows = [
        (
            bar.what + (f" ({bar.detail})" if bar.detail else ""),
            f"{bar.sense} {number(bar.bar, bar.unit)}",
            "" if bar.moonshot is None else f"{bar.sense} {number(bar.moonshot, bar.unit)}",
            "" if bar.measured is None else number(bar.measured, bar.unit) + (" †" if bar.disturbed else ""),
            bar.verdict,
        )
        for bar in judge_bars(result)
    ]
    return render_table(["what", "bar", "moonshot", "measured", ""], rows)


def _render_speed(part: Mapping[str, Any]) -> str:
    speed = part["speed"]
    disturbed = sum(entry["disturbed"] for entry in speed)
    lines = [
        "Medians over the rounds, quartiles in brackets. Of a batch, each contestant's better mode counts: whole, in "
        "one call, or apart, image by image and as many at once as there are threads.",
        f"Turns during which other programs took over {QUIET:.0%} of the processors are left out where half of the "
        f"rounds were quiet; {disturbed} of {len(speed)} figures had too few quiet rounds and are marked †.",
    ]
    for threads in sorted({entry["threads"] for entry in speed}):
        head = [
            f"{threads} thread{'s' if threads > 1 else ''}",
            "one image, tensor to row, ms",
            "one encoded image to row, ms",
            f"{BULK} tensors, images/s",
            f"{BULK} encoded images, images/s",
            "mode",
            "resident MB",
            "species (and disease) as PyTorch FP32",
            "embedding off by, rms",
        ]
        lines += ["", render_table(head, [_make_speed_row(part, name, threads) for name in _list_names(speed)])]
    return "\n".join(lines)


def _make_speed_row(part: Mapping[str, Any], name: str, threads: int) -> list[str]:
    def find(source: str, batch: int) -> Mapping[str, Any] | None:
        return best_entry(part["speed"], name, threads=threads, source=source, batch=batch)

    opened = next((o for o in part["opened"] if (o["contestant"], o["threads"]) == (name, threads)), None)
    agreement = part.get("agreement", {}).get(name)
    bulk = find("tensor", BULK)
    return [
        name,
        *(_format_milliseconds(find(source, 1)) for source in ("tensor", "image")),
        *(_format_rate(find(source, BULK)) for source in ("tensor", "image")),
        "" if bulk is None else bulk["mode"],
        "" if opened is None else f"{opened['resident_mb']:.0f}",
        ""
        if agreement is None
        else f"{agreement['species']:,} ({agreement['species_and_disease']:,}) of {agreement['images']:,}",
        "" if agreement is None else f"{agreement['embedding_rms']:.2g}",
    ]


def _list_names(speed: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(entry["contestant"] for entry in speed))


def _format_milliseconds(entry: Mapping[str, Any] | None, images: int = 1) -> str:
    if entry is None:
        return ""
    low, middle, high = (1000 * entry[key] / images for key in ("q1_s", "median_s", "q3_s"))
    return f"{middle:.1f} ({low:.1f}–{high:.1f}){_mark(entry)}"


def _mark(entry: Mapping[str, Any]) -> str:
    """Return the mark of a figure that other programs have disturbed."""
    return " †" if entry["disturbed"] else ""


def _format_rate(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    low, middle, high = (entry["batch"] / entry[key] for key in ("q3_s", "median_s", "q1_s"))
    return f"{middle:.1f} ({low:.1f}–{high:.1f}){_mark(entry)}"


def _render_batches(part: Mapping[str, Any]) -> str:
    speed = part["speed"]
    threads = max(entry["threads"] for entry in speed)
    batches = sorted({entry["batch"] for entry in speed if entry["threads"] == threads and entry["source"] == "tensor"})
    rows = []
    for name in _list_names(speed):
        found = [best_entry(speed, name, threads=threads, source="tensor", batch=batch) for batch in batches]
        rows.append([name, *(f"{1000 * e['median_s'] / e['batch']:.1f}{_mark(e)}" if e else "" for e in found)])
    return render_table([f"ms an image, tensor to row, {threads} threads; batch of", *map(str, batches)], rows)


def _render_steps(part: Mapping[str, Any]) -> str:
    if "steps" not in part:
        return ""
    titles = {"species": "species model", "disease": "routed disease", "ood": "OOD score", "row": "final row"}
    rows = [
        (title, f"{1000 * part['steps'][step]['median_s']:.3f}", f"{1000 * part['steps'][step]['q3_s']:.3f}")
        for step, title in titles.items()
    ]
    return render_table(
        [
            f"ours INT8, one image, step by step{' †' if part['steps_disturbed'] else ''}",
            "median ms",
            "third quartile ms",
        ],
        rows,
    )


def _render_species(entries: Sequence[Mapping[str, Any]]) -> str:
    def heads(key: str) -> list[str]:
        return [f"{entry['heads'][key]:.3f}" for entry in entries]

    def after(entry: Mapping[str, Any]) -> str:
        return f"{1000 * (entry['steps']['ood']['median_s'] + entry['steps']['disease']['median_s']):.3f}"

    rows = [
        ["heads quantized and written, s", *heads("quantize_and_write_s")],
        ["heads checked, s", *heads("check_s")],
        ["all single heads opened (serving opens none), s", *heads("open_s")],
        ["packed heads, 32 rows of mixed species, ms", *(f"{1000 * e['heads']['packed_rows_s']:.3f}" for e in entries)],
        ["packed heads, MB", *(f"{e['heads']['packed_bytes'] / 1e6:.1f}" for e in entries)],
        ["whole export (detector on a few leaves), s", *(f"{e['export']['total_s']:.1f}" for e in entries)],
        ["bundle loaded, s", *(f"{e['load']['median_s']:.2f}" for e in entries)],
        ["resident after the first answer, MB", *(f"{e['resident_mb']:.0f}" for e in entries)],
        ["one image, tensor to row, ms", *(_format_milliseconds(e["tensor"]) for e in entries)],
        ["of it OOD score and routed disease, ms", *map(after, entries)],
    ]
    return render_table(["ours INT8; species", *(str(entry["species"]) for entry in entries)], rows)


def _render_cold(part: Mapping[str, Any]) -> str:
    rows = []
    for loader, times in part["cold_start"].items():
        memory = part["memory"][loader]
        rows.append(
            [
                _LOADERS.get(loader, "`import mlflow.pyfunc` and nothing else"),
                f"{times['median_s']:.2f} ({times['min_s']:.2f}–{times['max_s']:.2f}){_mark(times)}",
                f"{memory['resident_mb']:.0f}",
                f"{memory['peak_mb']:.0f}",
            ]
        )
    download = part["download"]
    return (
        render_table(["from a cold process", "median s (quickest–slowest)", "resident MB", "peak MB"], rows)
        + f"\n\nThe native loader downloads {download['native_int8_files']} files, "
        f"{download['native_int8_mb']:.0f} MB; pyfunc everything, {download['pyfunc_files']} files, "
        f"{download['pyfunc_mb']:.0f} MB."
    )


def _render_one_file(part: Mapping[str, Any]) -> str:
    return "\n\n".join(_render_one_precision(precision.upper(), found) for precision, found in part.items())


def _render_one_precision(precision: str, part: Mapping[str, Any]) -> str:
    def show(rounds: Sequence[Mapping[str, float]], key: str) -> str:
        values = [times[key] if key.endswith("_mb") else 1000 * times[key] for times in rounds]
        digits = 3 if max(values) < 1 else 1
        return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f})"

    rows = [
        [title, *(show(part[case][way], key) for way in WAYS)]
        for title, case, key in (
            ("one image, tensor to answer, processor time", "image", "processor_s"),
            ("one image, tensor to answer, on the clock", "image", "clock_s"),
            ("of it disease, probabilities and OOD, processor time", "tail", "processor_s"),
            ("of it disease, probabilities and OOD, on the clock", "tail", "clock_s"),
            (f"{BATCH} images in one call, processor time", "batch", "processor_s"),
            (f"{BATCH} images in one call, on the clock", "batch", "clock_s"),
            ("new process to first answer, processor time", "cold", "processor_s"),
            ("new process to first answer, on the clock", "cold", "clock_s"),
            ("of it loading, processor time", "cold", "load_processor_s"),
            ("of it loading, on the clock", "cold", "load_clock_s"),
            ("peak of its memory, MB", "cold", "peak_mb"),
        )
    ]
    return render_table([f"{precision}, 1 thread; median of the rounds (quickest), ms", *WAYS], rows)


def _render_building(result: Mapping[str, Any]) -> str:
    parts = []
    if export := result.get("export"):
        rows = [[step, f"{seconds:.2f}"] for step, seconds in export["steps"].items()]
        title = f"export of {export['species']} species, detector on all training leaves"
        parts.append(render_table([title, "s"], [*rows, ["in all", f"{export['total_s']:.2f}{_mark(export)}"]]))
    if verify := result.get("verify"):
        parts.append(
            "Verification's accuracy pass (both precisions on each image): "
            f"{verify['images_per_s']:.1f}{_mark(verify)} images a second, "
            f"{verify['images']} images; resident {verify['resident_mb_before']:.0f} MB before, "
            f"{verify['resident_mb_after']:.0f} MB after."
        )
    if peers := result.get("peers"):
        rows = [[step, f"{seconds:.1f}"] for step, seconds in peers["seconds"].items()]
        parts.append(render_table(["to make the peers' files", "s"], rows))
    return "\n\n".join(parts)
