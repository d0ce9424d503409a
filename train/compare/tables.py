"""A comparison as text, Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from train.assess.report import align
from train.compare.evaluations import Shared
from train.compare.multi_label import MapPair
from train.compare.pareto import Cost
from train.compare.runs import FIGURES, Run
from train.compare.significance import Pair
from train.evaluate import METRICS
from train.progress import clock

Rows = list[tuple[str, ...]]
AnyPair = Pair | MapPair


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything that is said about runs.

    Attributes:
        runs: in the order in which they were given.
        metric: of their accuracy, one of `METRICS`.
        differing: settings that are not the same in all, values in the order of the runs.
        cost: that accuracy is held against.
        front: which runs are on the Pareto front.
        shared: the evaluations that they have in common.
        pairs: tests of every two of these.
    """

    runs: list[Run]
    metric: str
    differing: dict[str, list[Any]]
    cost: Cost
    front: list[bool]
    shared: Shared
    pairs: Sequence[AnyPair]


_BESIDE = 4  # runs whose settings stand beside each other

# Columns: head, and a run's text; "" where it has not recorded it. A column without any text is left out.
_COLUMNS: dict[str, Callable[[Run], str]] = {
    "status": lambda run: run.status,
    "top-1 %": lambda run: _text(run.top1, ".2f"),
    "top-5 %": lambda run: _text(run.top5, ".2f"),
    "mAP %": lambda run: _text(run.map, ".2f"),
    "loss": lambda run: _text(run.loss, ".4f"),
    "best epoch": lambda run: _text(run.best_epoch, "d"),
    "epochs": lambda run: _text(run.epochs, "d"),
    "images/s": lambda run: _text(run.images_per_s, ",.0f"),
    "time": lambda run: "" if run.time_s is None else clock(run.time_s),
    "energy kJ": lambda run: _text(run.energy_kj, ",.1f"),
    "parameters M": lambda run: "" if run.parameters is None else f"{run.parameters / 1e6:.2f}",
    "GFLOPs": lambda run: _text(run.gflops, ".3g"),
    "device": lambda run: run.device or "",
}


def text(found: Comparison) -> str:
    """For the terminal."""
    return "\n\n".join("\n".join(filter(None, (title, body))) for title, body in _sections(found, align))


def markdown(found: Comparison) -> str:
    """For a page or an issue."""
    return "\n\n".join("\n\n".join(filter(None, (title, body))) for title, body in _sections(found, _pipes))


def csv_text(found: Comparison) -> str:
    """A row per run: its figures, and the settings that differ."""
    out = io.StringIO()
    rows = records(found)
    writer = csv.writer(out, lineterminator="\n")
    config = list(found.differing)
    names = [name for name in rows[0] if name != "config"]
    writer.writerow([*names, *config])
    for row in rows:
        writer.writerow([*(row[name] for name in names), *(row["config"][key] for key in config)])
    return out.getvalue().rstrip("\n")


def json_text(found: Comparison) -> str:
    """Everything, for programs."""
    return json.dumps(
        {
            "runs": records(found),
            "cost": found.cost.label,
            "evaluation": {"data": found.shared.data, "split": found.shared.split},
            "pairs": [asdict(pair) | {"significant": pair.significant} for pair in found.pairs],
        },
        indent=1,
        ensure_ascii=False,
        default=str,
    )


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "table": text,
    "markdown": markdown,
    "csv": csv_text,
    "json": json_text,
}


def records(found: Comparison) -> list[dict[str, Any]]:
    """Each run's figures in plain units, and its values of the settings that differ."""
    rows = []
    for at, (run, front) in enumerate(zip(found.runs, found.front, strict=True)):
        names = (
            "name", "root", "status", *FIGURES[found.metric], "best_epoch", "epochs", "images_per_s", "time_s",
            "energy_kj", "parameters", "gflops", "device",
        )  # fmt: skip
        config = {key: values[at] for key, values in found.differing.items()}
        rows.append({name: getattr(run, name) for name in names} | {"pareto": front, "config": config})
    return rows


def _sections(found: Comparison, layout: Callable[[Rows], str]) -> list[tuple[str, str]]:
    sections = [("", layout(_figures(found))), _front(found)]
    if found.differing:
        sections.append(("settings that differ", layout(_settings(found))))
    else:
        sections.append(("no setting differs", ""))
    return [*sections, *_significance(found, layout)]


def _figures(found: Comparison) -> Rows:
    columns = {head: cells for head, of in _COLUMNS.items() if any(cells := [of(run) for run in found.runs])}
    head = ("run", *columns)
    return [head, *((run.name, *cells) for run, *cells in zip(found.runs, *columns.values(), strict=True))]


def _front(found: Comparison) -> tuple[str, str]:
    names = [run.name for run, front in zip(found.runs, found.front, strict=True) if front]
    metric = METRICS[found.metric]
    if not names:
        return f"no finished run has both a {metric} and a {found.cost.label}", ""
    return f"best {metric} for its {found.cost.label} (Pareto front): {', '.join(names)}", ""


def _settings(found: Comparison) -> Rows:
    """A row per setting; a row per run where there are many."""
    head = ("", *(run.name for run in found.runs))
    rows: Rows = [head, *((key, *map(_value, values)) for key, values in found.differing.items())]
    return rows if len(found.runs) <= _BESIDE else list(zip(*rows, strict=True))


def _significance(found: Comparison, layout: Callable[[Rows], str]) -> list[tuple[str, str]]:
    shared, sections = found.shared, []
    if found.pairs:
        many = len(found.pairs) > 1
        numbers = sorted({pair.samples for pair in found.pairs})  # several where some do not decode
        title = (
            f"the same {' or '.join(format(number, ',') for number in numbers)} samples of "
            f"{shared.data}, split {shared.split!r}: "
            f"{found.pairs[0].method}" + (", Holm's correction" if many else "")
        )
        alone = ["a alone right", "b alone right"] if found.metric == "top1" else []
        heads = ["a – b", f"{METRICS[found.metric]} %", "difference", "95 % interval", *alone, "p"]
        rows = [
            tuple([*heads, "p, Holm"] if many else heads),
            *(_pair_row(pair, many) for pair in found.pairs),
        ]
        sections.append((title, layout(rows)))
        sections.append(("\n".join(f"- {verdict(pair)}" for pair in found.pairs), _caution(found)))
    if shared.lacking:
        title = "no test of significance for runs without an evaluation of the same samples; first run"
        sections.append((title, "\n".join(f"  {command}" for command in shared.lacking.values())))
    return sections


def _pair_row(pair: AnyPair, many: bool) -> tuple[str, ...]:
    a, b = pair.scores
    low, high = pair.interval
    return (
        f"{pair.a} – {pair.b}", f"{a:.2f} – {b:.2f}", f"{a - b:+.2f}", f"{low:+.2f} … {high:+.2f}",
        *([f"{pair.only_a:,}", f"{pair.only_b:,}"] if isinstance(pair, Pair) else []),
        f"{pair.p:.2g}", *([f"{pair.adjusted_p:.2g}"] if many else []),
    )  # fmt: skip


def verdict(pair: AnyPair) -> str:
    """What a test found, in a sentence."""
    if not pair.significant:
        return f"{pair.a} and {pair.b}: no significant difference (p = {pair.adjusted_p:.2g})"
    a, b = pair.scores
    better, worse = (pair.a, pair.b) if a > b else (pair.b, pair.a)
    return f"{better} is better than {worse} by {abs(a - b):.2f} points (p = {pair.adjusted_p:.2g})"


def _caution(found: Comparison) -> str:
    seed_only = list(found.differing) == ["seed"]
    return (
        "This is about these networks, on these samples."
        + (" They differ in the seed alone: what separates them is chance in training." if seed_only else
           " Another seed would give others: to compare settings, train each with several.")
    )  # fmt: skip


def _pipes(rows: Rows) -> str:
    head, *rest = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    marks = [":--", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, marks, *rest))


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else "''" if value == "" else str(value)
