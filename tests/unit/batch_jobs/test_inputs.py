"""Files, folders, globs and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from batch_jobs.errors import JobRefused
from batch_jobs.input.locations import find_inputs


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.jsonl", "b/c.csv", "b/d/e.parquet", "b/note.txt", "b/_staging/x.jsonl", ".hidden.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return tmp_path


def names(*locations: object) -> list[str]:
    return [file.name for file in find_inputs([str(location) for location in locations])]


def test_file_folder_glob_and_url(tree: Path) -> None:
    assert names(tree / "a.jsonl") == ["a.jsonl"]
    assert names(tree) == ["a.jsonl", "b/c.csv", "b/d/e.parquet"]
    assert names(tree / "*.jsonl") == ["a.jsonl"]
    assert names(f"{tree}/**/*.parquet") == ["e.parquet"]
    assert names(f"file://{tree}/b") == ["c.csv", "d/e.parquet"]
    assert names(tree / "b/c.csv", tree / "a.jsonl", tree / "a.jsonl") == ["a.jsonl", "b/c.csv"]


def test_names_do_not_depend_on_where_the_tree_lies(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    moved = tmp_path_factory.mktemp("elsewhere") / "tree"
    tree.rename(moved)
    assert names(moved) == ["a.jsonl", "b/c.csv", "b/d/e.parquet"]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("missing.jsonl", "no such file or folder"),
        ("b/note.txt", "unknown format"),
        ("b/list.json", "one object per line"),
        ("b/lines.jsonl.gz", "decompress it"),
        ("b/table.pkl", "runs code when it is read"),
        ("*.nothing", "no file matches"),
        ("b/_staging", "holds no"),
    ],
)
def test_refusals(tree: Path, location: str, message: str) -> None:
    if location == "b/_staging":
        (tree / "b/_staging/x.jsonl").rename(tree / "b/_staging/x.txt")
    for name in ("list.json", "lines.jsonl.gz", "table.pkl"):
        (tree / "b" / name).write_text("[]")
    with pytest.raises(JobRefused, match=message):
        names(tree / location)


def test_unknown_scheme() -> None:
    with pytest.raises(JobRefused, match="cannot be opened"):
        names("nosuch://bucket/x.jsonl")
