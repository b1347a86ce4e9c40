"""The Arrow type of every carried input column, decided once per job.

Role: make all Parquet parts of a job agree on one schema. Owns: the kinds and the conversion of values.
Must not know: where rows come from.

Parquet input keeps its own types. JSONL values are seen by the scan: a column whose values are all of one simple type
gets that type, any other column is written as JSON text, so no part can disagree with another.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import orjson

from batch_jobs.input.rows import ID_COLUMN

if TYPE_CHECKING:
    import pyarrow as pa

MAX_INT64 = 2**63 - 1
_KINDS: dict[type, str] = {str: "string", bool: "bool", int: "int", float: "float"}


def json_default(value: Any) -> str:
    """How a value that JSON cannot carry is written: bytes in base64, everything else (dates, decimals) as text."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


class ColumnKinds:
    """Collects what values each column holds."""

    def __init__(self) -> None:
        self._kinds: dict[str, set[str]] = {}
        self._arrow: dict[str, pa.DataType] = {}

    @property
    def names(self) -> list[str]:
        return list(self._kinds)

    def see(self, columns: dict[str, Any]) -> None:
        for name, value in columns.items():
            kinds = self._kinds.setdefault(name, set())
            if value is not None:
                kinds.add(self._kind(value))

    @staticmethod
    def _kind(value: Any) -> str:
        if type(value) is int and abs(value) > MAX_INT64:
            return "json"
        return _KINDS.get(type(value), "json")

    def see_arrow(self, schema: pa.Schema) -> None:
        """A Parquet file's columns; files that disagree on a type make it a JSON column."""
        for field in schema:
            kinds = self._kinds.setdefault(field.name, set())
            known = self._arrow.setdefault(field.name, field.type)
            kinds.add("arrow" if known == field.type else "json")

    def schema(self) -> pa.Schema:
        """Carried columns (without the id, which the job writes itself), then nothing else."""
        import pyarrow as pa

        simple = {"string": pa.string(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64()}
        fields = []
        for name, kinds in self._kinds.items():
            if name == ID_COLUMN:
                continue
            if kinds == {"arrow"}:
                kind = self._arrow[name]
            elif kinds == {"int", "float"}:
                kind = pa.float64()
            elif len(kinds) == 1 and kinds <= simple.keys():
                kind = simple[next(iter(kinds))]
            else:  # mixed, nested, or never set
                kind = pa.string()
            fields.append(pa.field(name, kind))
        return pa.schema(fields)


def to_arrow(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Values as an Arrow array of the decided type; text columns take any value as JSON."""
    import pyarrow as pa

    if pa.types.is_string(kind):
        values = [
            value if value is None or isinstance(value, str) else orjson.dumps(value, default=json_default).decode()
            for value in values
        ]
    return pa.array(values, type=kind)
