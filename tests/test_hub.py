"""Datasets of the hub: which files a configuration is, of which column the text, and what is said where it is not clear."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from configs.errors import InputError
from data.hub import open_hub
from data.hub_configs import choose_files
from data.manifest import read_manifest
from data.prepare import main
from tests.processes import ROOT

FILES = {
    "data/CC-MAIN-2013-20/000_00000.parquet": ["a first page", "a second page"],
    "data/CC-MAIN-2013-20/000_00001.parquet": ["a third page"],
    "data/CC-MAIN-2024-51/000_00000.parquet": ["a page of 2024", "another page"],
    "sample/10BT/000_00000.parquet": ["a second page", "another page"],
}
CARD = [
    {"config_name": "default", "data_files": [{"split": "train", "path": "data/*/*"}]},
    {"config_name": "sample-10BT", "data_files": [{"split": "train", "path": "sample/10BT/*"}]},
    *(
        {"config_name": name, "data_files": [{"split": "train", "path": f"data/{name}/*"}]}
        for name in ("CC-MAIN-2013-20", "CC-MAIN-2024-51")
    ),
]


def rows(texts: list[str | None], column: str = "text") -> pa.Table:
    """Rows with FineWeb's columns."""
    count = len(texts)
    others = {name: [f"{name} {n}" for n in range(count)] for name in ("id", "dump", "url", "date", "file_path")}
    numbers = {"language": ["en"] * count, "language_score": [0.9] * count, "token_count": list(range(count))}
    return pa.table({column: pa.array(texts, pa.string()), **others, **numbers})


@pytest.fixture
def fineweb(tmp_path: Path) -> Path:
    """A copy of a dataset in FineWeb's layout, with its card."""
    for name, texts in FILES.items():
        path = tmp_path / "fineweb" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows(texts), path)
    (tmp_path / "fineweb" / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': CARD})}---\n# FineWeb\n")
    return tmp_path / "fineweb"


def texts(*parts: str) -> list[str]:
    return [text for name, held in FILES.items() if any(part in name for part in parts) for text in held]


def test_a_configuration_of_a_copy(fineweb: Path) -> None:
    """Breaks if a sample, whose rows stand in data/ too, is read twice, or a configuration has other files than its own."""
    assert list(open_hub(str(fineweb), None).documents()) == texts("data/")
    assert list(open_hub(str(fineweb), None, config="sample-10BT").documents()) == texts("sample/")
    source = open_hub(str(fineweb), None, config="CC-MAIN-2013-20", kind="hub")
    assert list(source.documents()) == texts("2013")
    assert source.describe()["config"] == "CC-MAIN-2013-20"
    assert source.notes == [f"{fineweb}: configuration CC-MAIN-2013-20, split train, 2 of 4 parquet files are read"]
    with pytest.raises(
        InputError, match="has no configuration sample-1T; it has default, sample-10BT, CC-MAIN-2013-20,"
    ):
        open_hub(str(fineweb), None, config="sample-1T")
    (fineweb / "README.md").write_text("---\nconfigs: [\n---\n")
    with pytest.raises(InputError, match=r"README.md is no card of a dataset"):
        open_hub(str(fineweb), None)
    (fineweb / "README.md").write_text("# nothing\n")
    with pytest.raises(InputError, match="has no card, and several folders: name one with --config, of data, sample"):
        open_hub(str(fineweb), None)
    assert list(open_hub(str(fineweb), None, config="sample").documents()) == texts("sample/")


@pytest.mark.parametrize(
    ("card", "config", "chosen"),
    [
        ([{"config_name": "one", "data_files": "*.parquet"}], None, ["a.parquet"]),
        ([{"config_name": "one", "data_files": ["a.parquet", "x/**"]}], None, ["a.parquet", "x/train/b.parquet", "x/y/c.parquet"]),
        ([{"config_name": "one", "data_files": {"test": "a.parquet", "train": "x/*/b.parquet"}}], None, ["x/train/b.parquet"]),
        ([{"config_name": "one", "data_dir": "x/"}], None, ["x/train/b.parquet"]),
        ([{"config_name": "one", "data_dir": "x/y"}], None, ["x/y/c.parquet"]),
        ([{"config_name": "one", "features": []}], None, ["x/train/b.parquet"]),
        ([{"config_name": "one", "data_files": [{"split": "all", "path": ["./a.par?uet"]}]}], None, ["a.parquet"]),
        ([{"config_name": n, "data_files": f"{n}*", "default": n == "a"} for n in "xa"], None, ["a.parquet"]),
        (None, "x", ["x/train/b.parquet"]),
        ([], None, ["a.parquet", "x/train/b.parquet", "x/y/c.parquet"]),
    ],
)  # fmt: skip
def test_cards(card: Any, config: str | None, chosen: list[str]) -> None:
    """Breaks if one of the ways in which cards name files is read as another."""
    assert choose_files(["a.parquet", "x/train/b.parquet", "x/y/c.parquet"], card, config, "d")[0] == chosen


@pytest.mark.parametrize(
    ("card", "config", "said"),
    [
        (
            [{"config_name": n, "data_files": "*"} for n in "ab"],
            None,
            "several configurations: name one with --config, of a, b",
        ),
        ([{"config_name": f"c{n}", "data_files": "*"} for n in range(90)], "x", "and 70 more"),
        (
            [{"config_name": "a", "data_files": "y/*"}],
            None,
            r"configuration a of d names no parquet file that is there \(y/\*\)",
        ),
        ([{"config_name": "a", "data_files": {"test": "*", "dev": "*"}}], None, "has no split train; it has test, dev"),
        (None, "z", "no configuration z: no card names one, and its folders are de, en"),
        (None, None, "has no card, and several folders: name one with --config, of de, en"),
    ],
)
def test_unclear_configurations(card: Any, config: str | None, said: str) -> None:
    """Breaks if one of several configurations is taken, or all of them, without a word."""
    with pytest.raises(InputError, match=said):
        choose_files(["de/train/0.parquet", "en/train/0.parquet"], card, config, "d")


def test_the_column_of_the_text(fineweb: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if another column than "text" cannot be named, a wrong name is not answered with those that are there, or a
    null is prepared as text."""
    pq.write_table(rows(["a body", None, "a second body"], "body"), tmp_path / "bodies.parquet")
    copy = tmp_path / "bodies"
    copy.mkdir()
    (tmp_path / "bodies.parquet").rename(copy / "a.parquet")
    for words in (["hub", "--dataset", str(copy)], ["parquet", "--input", str(copy / "*.parquet")]):
        out = tmp_path / words[0]
        arguments = ["--source", *words, "--out", str(out), "--vocab-size", "280", "--val-fraction", "0.3"]
        assert main([*arguments, "--workers", "1"]) == 2
        error = capsys.readouterr().err
        assert re.search(r"no column 'text' \(found: body, id, dump, url, .*token_count\); see --text-field", error)
        assert main([*arguments, "--text-field", "body"]) == 2
        assert "has null in the column 'body'; --skip-bad" in capsys.readouterr().err
        assert not out.exists()
        assert main([*arguments, "--text-field", "body", "--skip-bad", "--workers", "1"]) == 0
        manifest = read_manifest(out)
        assert manifest is not None
        assert manifest.source["skipped"] == {"row with null in the column 'body'": 1}
        assert manifest.source["kind"] == words[0]
    capsys.readouterr()
    pattern = str(fineweb / "data" / "CC-MAIN-*" / "*.parquet")
    arguments = ["--source", "parquet", "--input", pattern, "--out", str(tmp_path / "p"), "--vocab-size", "280"]
    assert main([*arguments, "--workers", "1"]) == 0
    assert main(["--source", "hub", "--out", str(tmp_path / "no")]) == 2
    assert "--source hub needs --dataset" in capsys.readouterr().err
    assert main([*arguments[:4], "--out", str(tmp_path / "no"), "--config", "x"]) == 2
    assert "--config x is for --source hub" in capsys.readouterr().err


def test_damaged_copies(fineweb: Path) -> None:
    """Breaks if a file that was not fetched whole is a traceback; other columns in one of the files are no matter."""
    pq.write_table(pa.table({"text": ["plain"], "more": [1]}), fineweb / "data/CC-MAIN-2013-20/000_00001.parquet")
    assert list(open_hub(str(fineweb), None, config="CC-MAIN-2013-20").documents()) == [
        *texts("2013-20/000_00000"),
        "plain",
    ]
    whole = (fineweb / "data/CC-MAIN-2013-20/000_00000.parquet").read_bytes()
    (fineweb / "data/CC-MAIN-2013-20/000_00001.parquet").write_bytes(whole[:-40])
    with pytest.raises(InputError, match="cannot be read after row 2: "):
        list(open_hub(str(fineweb), None, config="CC-MAIN-2013-20").documents())


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a reader of one dataset meets: its description, the paths of its files, and ranges of their bytes."""

    folder: Path
    sha = "a" * 40

    def answer(self, body: bytes, code: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def entry(self, name: str) -> dict[str, Any]:
        return {"type": "file", "oid": "0" * 40, "size": (self.folder / name).stat().st_size, "path": name}

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if path.startswith("/api/datasets/people/pages/revision/"):
            described = {"id": "people/pages", "sha": self.sha, "cardData": {"configs": CARD}}
            siblings = [{"rfilename": name, "size": self.entry(name)["size"]} for name in FILES]
            self.answer(
                json.dumps({**described, "siblings": siblings}).encode(), headers={"Content-Type": "application/json"}
            )
        elif path.startswith("/api/datasets/people/pages/tree/"):
            inside = path.partition(self.sha)[2].strip("/")
            entries = [self.entry(name) for name in FILES if name.startswith(inside)]
            self.answer(json.dumps(entries).encode(), headers={"Content-Type": "application/json"})
        elif "/resolve/" in path:
            raw = (self.folder / path.partition(f"{self.sha}/")[2]).read_bytes()
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            told = {"ETag": '"e"', "X-Repo-Commit": self.sha, "Accept-Ranges": "bytes"}
            if asked:
                first, last = int(asked[1]), min(int(asked[2]), len(raw) - 1)
                told["Content-Range"] = f"bytes {first}-{last}/{len(raw)}"
                self.answer(raw[first : last + 1], 206, told)
            else:
                self.answer(raw, headers=told)
        else:
            self.answer(b"{}", 404)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        names = [name for name in asked.get("paths", []) if name in FILES]
        self.answer(
            json.dumps([self.entry(name) for name in names]).encode(), headers={"Content-Type": "application/json"}
        )

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def hub(fineweb: Path) -> Iterator[str]:
    """The address of a hub that has one dataset, people/pages."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Hub,), {"folder": fineweb}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_from_a_hub(hub: str, tmp_path: Path) -> None:
    """Breaks if the files of a configuration are not those that are fetched, at the resolved revision, one column of them."""
    code = (
        "from data.hub import open_hub; s = open_hub('people/pages', None, config='sample-10BT', kind='hub')\n"
        "import json; print(json.dumps([s.describe(), s.files, list(s.documents())]))"
    )
    env = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr[-2000:]
    described, files, read = json.loads(ended.stdout.splitlines()[-1])
    assert described["revision"] == Hub.sha
    assert described["config"] == "sample-10BT"
    assert files == [f"hf://datasets/people/pages@{Hub.sha}/sample/10BT/000_00000.parquet"]
    assert read == texts("sample/")
