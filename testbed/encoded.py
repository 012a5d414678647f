"""Values of a run as the bytes of its files: JSON, CSV, Parquet."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

from testbed.model.experiment import RequestRow


def as_json(value: Any) -> Any:
    """A value of the model as plain JSON: dataclasses to objects, enums and other things to their text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(v) for v in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def parquet_bytes(trial: str, rows: Sequence[RequestRow]) -> bytes:
    # pyarrow is heavy, and reading a run's tables does not need it. To memory first: only `write_whole` meets the disk.
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"trial": pa.array([trial] * len(rows)).dictionary_encode()}
    columns |= {f.name: [getattr(r, f.name) for r in rows] for f in dataclasses.fields(RequestRow)}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue()


def csv_bytes(rows: Iterable[Iterable[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def cell(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, float) else str(value)


def json_line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def json_text(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n"
