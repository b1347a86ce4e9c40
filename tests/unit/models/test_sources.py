"""The sources that need no conversion: a folder in place, the hub, an object store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.config import S3, HuggingFace, LocalFolder, ModelConfig, PathsConfig
from cluster.models import ModelError, PreparedModel, prepare_model
from cluster.models.object_store import RemoteFile, download_model

pafs = pytest.importorskip("pyarrow.fs")
URL = "s3://bucket/models/tiny"


class Store:
    """An object store on a local folder that counts what is read from it."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "models" / "tiny"
        self.folder.mkdir(parents=True)
        self.opened: list[str] = []
        self.put("config.json", b"{}")
        self.put("model-00001.safetensors", b"weights" * 1000)
        self.put("nested/extra.json", b"[]")

    def put(self, name: str, content: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def open(self, url: str) -> tuple[object, str]:
        self.opened.append(url)
        return pafs.LocalFileSystem(), str(self.folder) + "/"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def folders(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir()) if cache.exists() else []


def test_hub_ids_pass_through(tmp_path: Path) -> None:
    source = HuggingFace(kind="huggingface", id="org/model", revision="abc")
    prepared = prepare_model("m", ModelConfig(source=source), PathsConfig(models=tmp_path / "models"))
    assert prepared == PreparedModel("m", "org/model", "abc")
    assert prepared.folder is None
    assert not (tmp_path / "models").exists()


def test_local_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    source = LocalFolder(kind="local", path=tmp_path)
    assert prepare_model("m", ModelConfig(source=source), PathsConfig()).folder == tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [("absent", "does not exist"), ("file", "is not a folder"), ("empty", r"has no config\.json")],
)
def test_local_folder_that_is_no_model(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    source = LocalFolder(kind="local", path=tmp_path / name)
    with pytest.raises(ModelError, match=rf"models\.m\.source\.path: .*{expected}.*config\.json and the weights"):
        prepare_model("m", ModelConfig(source=source), PathsConfig())


def test_download_once_with_every_file(tmp_path: Path, store: Store) -> None:
    said: list[str] = []
    cache = tmp_path / "cache"
    first = download_model("org/tiny", URL, cache, said.append, store.open)
    assert (first / "model-00001.safetensors").read_bytes() == b"weights" * 1000
    assert (first / "nested" / "extra.json").read_bytes() == b"[]"
    lines = len(said)
    assert download_model("org/tiny", URL, cache, said.append, store.open) == first
    assert len(said) == lines == 5
    assert folders(cache) == [first.name]


def test_a_changed_model_is_another_folder(tmp_path: Path, store: Store) -> None:
    first = download_model("tiny", URL, tmp_path / "cache", print, store.open)
    store.put("model-00001.safetensors", b"other")
    second = download_model("tiny", URL, tmp_path / "cache", print, store.open)
    assert first != second
    assert (first / "model-00001.safetensors").read_bytes() == b"weights" * 1000
    assert (second / "model-00001.safetensors").read_bytes() == b"other"


def test_a_short_file_is_refused(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing and a download that disagree: what a store says when an object changes in between."""
    from cluster.models import object_store

    listed = object_store.list_files

    def larger(filesystem: object, root: str) -> list[RemoteFile]:
        files = listed(filesystem, root)
        return [RemoteFile(file.path, file.relative, file.size_bytes + 1, file.changed_ns) for file in files]

    monkeypatch.setattr(object_store, "list_files", larger)
    with pytest.raises(ModelError, match=r"bytes in the listing and .* arrived"):
        download_model("tiny", URL, tmp_path / "cache", print, store.open)
    assert folders(tmp_path / "cache") == []


def test_unfinished_download_is_made_anew(tmp_path: Path, store: Store) -> None:
    cache = tmp_path / "cache"
    target = download_model("tiny", URL, cache, print, store.open)
    unfinished = target.with_name(f".{target.name}.unfinished-killed")
    target.rename(unfinished)
    (unfinished / "stray").write_text("")
    assert download_model("tiny", URL, cache, print, store.open) == target
    assert not (target / "stray").exists()
    assert folders(cache) == [target.name]


def test_a_folder_without_config_is_no_model(tmp_path: Path, store: Store) -> None:
    (store.folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"holds 2 files and no config\.json"):
        download_model("tiny", URL, tmp_path / "cache", print, store.open)


def test_an_unreadable_store_names_the_cure_and_no_secret(tmp_path: Path, store: Store) -> None:
    def refused(url: str) -> tuple[object, str]:
        raise OSError("access denied")

    with pytest.raises(ModelError, match=r"access denied.*AWS_ACCESS_KEY_ID") as caught:
        download_model("tiny", "s3://key:secret@bucket/models?access_key=secret", tmp_path, print, refused)
    assert "s3://bucket/models " in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_absent_folder_in_the_store(tmp_path: Path) -> None:
    def elsewhere(url: str) -> tuple[object, str]:
        return pafs.LocalFileSystem(), str(tmp_path / "absent")

    with pytest.raises(ModelError, match="cannot be read"):
        download_model("tiny", URL, tmp_path / "cache", print, elsewhere)


def test_prepare_model_downloads_from_s3(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.models import prepare

    def download(name: str, url: str, cache: Path, progress: object) -> Path:
        return download_model(name, url, cache, print, store.open)

    monkeypatch.setattr(prepare, "download_model", download)
    prepared = prepare_model("tiny", ModelConfig(source=S3(kind="s3", url=URL)), PathsConfig(models=tmp_path / "cache"))
    assert prepared.folder is not None and (prepared.folder / "config.json").is_file()
    assert store.opened == [URL]


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'pyarrow', 'ray'}"
    code = f"import sys, cluster.models; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
