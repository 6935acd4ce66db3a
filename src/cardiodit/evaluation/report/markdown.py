"""The report's table in Markdown, and its metrics as the `model-index` of a model card."""

from collections.abc import Mapping
from typing import Any

import yaml

from cardiodit.evaluation.report.report_file import current_metrics, recall_beside

TASK = "unconditional-image-generation"
HEAD = (
    "| Metric | Value (95% interval) | At the floor's sample size | Floor (real against real) | Better |",
    "|---|---|---|---|---|",
)


def table(report: Mapping[str, Any]) -> str:
    """Return one line per metric, followed by what a reader needs to compare it with another table."""
    protocol, metrics = report["protocol"], current_metrics(report)
    lines = [*HEAD, *(_line(metric, recall_beside(metric, report)) for metric in metrics)]
    notes = [_counts(protocol), _networks(protocol)]
    notes += [f"Left out: {reason}" for reason in protocol["left_out"]]
    if report["problems"]:
        notes.append(f"{len(report['problems'])} files had problems and were not evaluated; the report names them.")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


def model_index(report: Mapping[str, Any], model: str | None = None) -> list[dict[str, Any]]:
    """Return the `model-index` of a model card's metadata."""
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    name = model or report["sets"]["synthetic"].get("made_by", {}).get("model") or "model"
    identity = report["sets"]["real"]["identity"][:12]
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=f"real-{identity}",
            dataset_name=f"{report['protocol']['counts']['real']} real volumes ({identity})",
            metric_type=metric["name"],
            metric_name=metric["title"] + (f" ({metric['unit']})" if metric["unit"] else ""),
            metric_value=metric["value"],
        )
        for metric in current_metrics(report)
        if metric["value"] is not None
    ]
    return eval_results_to_model_index(str(name).rsplit("/", 1)[-1], results) if results else []


def model_index_yaml(report: Mapping[str, Any], model: str | None = None) -> str:
    """Return the `model-index` as YAML for the block at the top of a card."""
    return yaml.safe_dump({"model-index": model_index(report, model)}, sort_keys=False, allow_unicode=True, width=120)


def number(value: float | None) -> str:
    """Format a number with four digits."""
    return "–" if value is None else f"{value:.4g}"


def _line(metric: Mapping[str, Any], recall: Mapping[str, Any] | None) -> str:
    unit = f" {metric['unit']}" if metric["unit"] else ""
    floor = metric["floor"]
    matched = f"{number(floor['matched'])}{unit}{_count(floor)}" if floor else "–"
    floor_text = f"{number(floor['value'])}{unit}{_interval(floor)}" if floor else "–"
    value = f"{number(metric['value'])}{unit}{_interval(metric)}"
    if recall:
        value += f", recall {number(recall['value'])}"
    return f"| {metric['title'].replace('|', '/')} | {value} | {matched} | {floor_text} | {metric['better']} |"


def _count(floor: Mapping[str, Any]) -> str:
    return f" (n = {floor['volumes']})" if floor["volumes"] else " (all)"


def _interval(entry: Mapping[str, Any]) -> str:
    low, high = entry["low"], entry["high"]
    if low is None and high is None:
        return ""
    if low is None:
        return f" (up to {number(high)})"
    return f" ({number(low)} to {number(high)})"


def _counts(protocol: Mapping[str, Any]) -> str:
    counts = protocol["counts"]
    return (
        f"{counts['real']} real and {counts['synthetic']} synthetic volumes, seed {protocol['seed']}, cardiodit "
        f"{protocol['cardiodit']}."
    )


def _networks(protocol: Mapping[str, Any]) -> str:
    spatial, segmenter = protocol["features"]["spatial"], protocol["segmenter"]
    text = f"Features: {spatial['name']}, weights {spatial['weights']['sha256'][:12]}"
    if note := spatial.get("note"):
        text += f" ({note})"
    return text + (f". Segmenter: {segmenter['name']}, {segmenter['identity'][:12]}." if segmenter else ".")
