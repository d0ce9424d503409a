"""`python -m bench report`: all records as one HTML page that needs nothing else.

Records differ by benchmark, and more kinds will come, so nothing here knows any of them: `bench.page_tables` makes
tables and charts out of whatever a record holds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.page_tables import charts, column, flat, label, tables
from shard.errors import FeedlineError
from train.page import Cell, Chart, Column, Table, cell, template

_APART = ("benchmark", "environment", "settings")  # shown in a place of their own
_TITLES = {
    "throughput": "Throughput of every stage",
    "overhead": "The training step against a plain loop",
    "packing": "Packing",
    "peers": "Other loaders",
    "shuffle": "Quality of shuffling",
    "remote": "Training from an object store",
    "doctor": "What limits",
    "accelerator": "Accelerators that this machine can feed",
    "scaling": "Scaling",
    "guard": "Guard",
    "guard-planted": "Slow-downs that were planted for the guard",
    "doctor-planted": "Bottlenecks that were planted for the doctor",
}


@dataclass(frozen=True, slots=True)
class Section:
    """One record on the page."""

    anchor: str
    title: str
    file: str
    facts: list[tuple[str, str]]
    lines: list[str]
    charts: list[Chart]
    tables: list[Table]
    settings: Table


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Records by their path inside `folder`.

    Raises:
        FeedlineError: there are none, or a file is no record.
    """
    records: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FeedlineError(f"{path} cannot be read as a record: {error}; move it elsewhere") from error
        if not isinstance(record, dict):
            raise FeedlineError(
                f"{path} holds a {type(record).__name__}, not a record of `python -m bench`; move it elsewhere"
            )
        records[str(path.relative_to(folder))] = record
    if not records:
        raise FeedlineError(f"{folder} holds no records (*.json); give --records FOLDER")
    return records


def page(records: dict[str, dict[str, Any]], title: str = "feedline: benchmarks") -> str:
    """The page as HTML; `records` by file name."""
    newest = sorted(records.items(), key=lambda item: (_date(item[1]), item[0]), reverse=True)
    sections = [_section(number, file, record) for number, (file, record) in enumerate(newest)]
    overview = _overview(sections, [record for _, record in newest])
    return template("bench", "page.html").render(title=title, sections=sections, overview=overview)


def _date(record: dict[str, Any]) -> str:
    return str(_environment(record).get("date") or "")


def _environment(record: dict[str, Any]) -> dict[str, Any]:
    found = record.get("environment")
    return found if isinstance(found, dict) else {}


def _machine(record: dict[str, Any]) -> str:
    where = _environment(record)
    gpu = where.get("gpu")
    names = [gpu.get("name")] if isinstance(gpu, dict) else []
    cores = f"{where['cores']} cores" if where.get("cores") else None
    return ", ".join(str(name) for name in [*names, where.get("cpu"), cores] if name)


def _section(number: int, file: str, record: dict[str, Any]) -> Section:
    where, kind = _environment(record), str(record.get("benchmark", "record"))
    facts = [
        ("machine", _machine(record)),
        ("date", _date(record).replace("T", " ")),
        ("commit", str(where.get("commit") or "")),
        ("memory", f"{where['memory_gib']} GiB" if where.get("memory_gib") else ""),
        ("Python", str(where.get("python") or "")),
        ("system", str(where.get("system") or "")),
    ]
    results = {key: value for key, value in record.items() if key not in _APART}
    found = tables(results)
    settings = {**flat(record.get("settings")), **flat(where.get("packages"))}
    return Section(
        anchor=f"record-{number}",
        title=_TITLES.get(kind, label(kind)),
        file=file,
        facts=[(name, value) for name, value in facts if value],
        lines=[
            cell(value).text if key == "summary" else f"{label(key)}: {cell(value).text}"
            for key, value in results.items()
            if isinstance(value, str | int | float)
        ],
        charts=[chart for table in found for chart in charts(table)],
        tables=found,
        settings=Table(
            "", [Column("setting", False), Column("value", False)],
            [[Cell(name), cell(value)] for name, value in settings.items()],
        ),
    )  # fmt: skip


def _overview(sections: Sequence[Section], records: Sequence[dict[str, Any]]) -> Table:
    rows = [
        [
            Cell(section.title, link=section.anchor),
            Cell(_machine(record)),
            Cell(_date(record)[:10]),
            Cell(str(_environment(record).get("commit") or "")),
            Cell(section.file),
        ]
        for section, record in zip(sections, records, strict=True)
    ]
    heads = ("record", "machine", "date", "commit", "file")
    return Table("Records", [column(head, False) for head in heads], rows)
