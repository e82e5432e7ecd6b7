"""Where checkpoints come from: folders, and a hub that speaks Hugging Face's protocol over real HTTP."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from transformers import AutoTokenizer

from pywebml.errors import SourceError
from pywebml.prepare.quiet import quiet
from pywebml.prepare.source import VOCABULARIES, open_checkpoint
from tests.faults.hugging_face import Revision
from tests.faults.server import FaultServer
from tests.parity.tiny_models import tiny_tokenizer
from tests.unit.test_prepare_convert import tiny_bert, write_checkpoint

CARD = "---\nlicense: mit\n---\n"
WEIGHTS = save({"a": np.ones(3, np.float32)})
FILES: Mapping[str, bytes | str] = {
    "config.json": '{"model_type": "bert"}',
    "model.safetensors": WEIGHTS,
    "README.md": CARD,
    "tokenizer.json": "{}",
    "1_Pooling/config.json": "{}",
    "preprocessor_config.json": "{}",
    "modeling_own.py": "raise SystemExit(9)",
    "pytorch_model.bin": b"never asked for",
    "tf_model.h5": b"never asked for",
    "model.fp16.safetensors": b"never asked for",
}


# Takes checkpoints one after the other: the library reads its settings once, and takes long to import.
TAKER = """
import json, os, sys
from pywebml.errors import SourceError
from pywebml.prepare.source import download_checkpoint

for line in sys.stdin:
    words, remote_code, token = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        found = download_checkpoint(*words, trust_remote_code=remote_code)
    except SourceError as error:
        answer = {"error": str(error), "status": error.details.get("status")}
    else:
        files = [path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file()]
        answer = {"files": sorted(files), "origin": found.origin, "licence": found.licence, "words": found.arguments}
    print(json.dumps(answer), flush=True)
"""


class Taker:
    """A process that takes checkpoints from a hub into a cache of its own."""

    def __init__(self, endpoint: str, home: Path) -> None:
        self.environment = environment(endpoint, home)
        self._process = subprocess.Popen(
            [sys.executable, "-c", TAKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self.environment,
        )

    def __call__(self, *words: str, remote_code: bool = False, token: str = "") -> dict[str, Any]:
        """What `download_checkpoint` gives, or the error that it raises."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([words, remote_code, token]) + "\n")
        self._process.stdin.flush()
        value: dict[str, Any] = json.loads(self._process.stdout.readline())
        return value

    def stop(self) -> None:
        self._process.communicate()


def environment(endpoint: str, home: Path) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE"))},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "NO_PROXY": "127.0.0.1,localhost",
        "PYTHONPATH": str(Path.cwd()),
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultServer]:
    with FaultServer(tmp_path_factory.mktemp("www")) as server:
        yield server


@pytest.fixture(scope="module")
def process(running: FaultServer, home: Path) -> Iterator[Taker]:
    taker = Taker(running.url, home)
    yield taker
    taker.stop()


class Hub:
    """The repository `name` of a hub, which no other test has."""

    def __init__(self, server: FaultServer, name: str) -> None:
        self.server = server
        self.name = name

    def add(self, revision: str, files: Mapping[str, Any], **choices: Any) -> Revision:
        # Large files come from another host, as the real hub's do.
        cdn = self.server.url.replace("127.0.0.1", "localhost")
        return self.server.hugging_face(self.name, revision, files, cdn_url=cdn, **choices)


@pytest.fixture
def hub(running: FaultServer, request: pytest.FixtureRequest) -> Iterator[Hub]:
    running.state.reset()
    # Names are no longer than 96 characters.
    yield Hub(running, f"org/{hashlib.sha1(request.node.name.encode()).hexdigest()}")
    running.state.reset()


def test_only_what_a_conversion_reads_is_taken(hub: Hub, process: Taker) -> None:
    commit = hub.add("main", FILES).commit

    assert process(hub.name, "main") == {
        "files": [
            "1_Pooling/config.json",
            "README.md",
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
            "tokenizer.json",
        ],
        "origin": f"{hub.server.url}/{hub.name} at {commit}",
        "licence": "mit",
        "words": f"--model-id {hub.name} --source-revision {commit}",
    }
    assert not any(word in request for request in hub.server.requests() for word in (".bin", ".h5", ".fp16", ".py"))


def test_code_is_taken_only_when_it_is_trusted(hub: Hub, process: Taker) -> None:
    hub.add("main", FILES)
    assert "modeling_own.py" in process(hub.name, "main", remote_code=True)["files"]


def test_revisions_are_those_of_the_hub(hub: Hub, process: Taker) -> None:
    hub.add("main", FILES)
    old = hub.add("v1", {**FILES, "README.md": "---\nlicense: other\n---\n"})

    assert process(hub.name, "v1")["licence"] == "other"
    assert process(hub.name, old.commit)["origin"].endswith(old.commit)


def test_sharded_weights_are_taken_whole(hub: Hub, process: Taker) -> None:
    shards = {f"model-0000{n}-of-00002.safetensors": WEIGHTS for n in (1, 2)}
    index = json.dumps({"weight_map": dict(zip("ab", shards, strict=True))})
    hub.add("main", {**without("model.safetensors"), **shards, "model.safetensors.index.json": index})

    assert set(shards) <= set(process(hub.name, "main")["files"])


def test_private_models_need_a_token(hub: Hub, process: Taker) -> None:
    hub.add("main", FILES, private_token="secret")

    assert f"has no repository {hub.name}, or it is private" in process(hub.name, "main")["error"]
    assert process(hub.name, "main", token="secret")["licence"] == "mit"


def without(*names: str) -> dict[str, bytes | str]:
    return {name: data for name, data in FILES.items() if name not in names}


@pytest.mark.parametrize(
    ("files", "words", "message"),
    [
        (FILES, ("org/other", "main"), "has no repository org/other"),
        (FILES, ("{name}", "v9"), "{name} has no revision 'v9'"),
        (FILES, ("not a name", "main"), "cannot be the name of a repository"),
        (without("config.json"), ("{name}", "main"), "{name} at main has no config.json"),
        (without("model.safetensors"), ("{name}", "main"), "weights only as pytorch_model.bin"),
        (without("model.safetensors", "pytorch_model.bin"), ("{name}", "main"), "has no model.safetensors"),
        ({**FILES, "config.json": "{"}, ("{name}", "main"), "not readable as JSON"),
    ],
)
def test_what_cannot_be_taken_is_told_with_what_to_do(
    hub: Hub, process: Taker, files: Mapping[str, bytes | str], words: tuple[str, str], message: str
) -> None:
    hub.add("main", files)

    error = process(*(word.format(name=hub.name) for word in words))["error"]

    assert message.format(name=hub.name) in error
    if "JSON" not in message:
        # Weights are large: what is wrong is found before they are asked for.
        assert not any("/cdn/" in request for request in hub.server.requests())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"status": 403, "headers": {"X-Error-Code": "GatedRepo"}}, "is gated: "),
        ({"status": 403}, "is gated: "),
        ({"status": 404}, "has no repository"),
        ({"status": 500}, "answered with status 500"),
    ],
)
def test_refusals_of_the_hub_are_told(hub: Hub, process: Taker, answer: dict[str, Any], message: str) -> None:
    hub.add("main", FILES)
    hub.server.fault(f"/api/models/{hub.name}/*", "status", answer)

    found = process(hub.name, "main")
    assert message in found["error"]
    assert found["status"] == answer["status"]


def test_without_a_network_the_cache_serves_or_the_hub_is_named(hub: Hub, process: Taker, home: Path) -> None:
    hub.add("main", FILES)
    online = process(hub.name, "main")

    offline = Taker("http://user:password@127.0.0.1:9", home)
    known, unknown = offline(hub.name, "main"), offline("org/never-seen", "main")
    offline.stop()

    assert known["files"] == online["files"]
    assert unknown["error"].startswith("Cannot take org/never-seen at main from http://127.0.0.1:9: ")
    assert "Check the network and HF_ENDPOINT" in unknown["error"]


def test_command_converts_a_repository_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", tiny_bert())
    revision = hub.add("v1.0", {path.name: path for path in folder.iterdir()})

    words = ["convert", "--model-id", hub.name, "--source-revision", "v1.0", "--modes", "q8", "--output"]
    result = subprocess.run(
        [sys.executable, "-m", "pywebml.cli", *words, str(tmp_path / "hub")],
        capture_output=True,
        text=True,
        env=environment(hub.server.url, tmp_path / "home"),
        timeout=300,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    target = tmp_path / "hub" / hub.name / "main"
    report = json.loads((target / "report.json").read_text())
    assert report["source"]["origin"] == f"{hub.server.url}/{hub.name} at {revision.commit}"
    assert report["task"] == "feature-extraction"
    card = (target / "README.md").read_text()
    assert f"pywebml convert --model-id {hub.name} --source-revision {revision.commit} --name {hub.name}" in card
    assert card.startswith("---\nlicense: mit\n")
    # A log file gets lines, without bars and carriage returns.
    assert f"Taking {hub.name} from the Hugging Face hub\n[" in result.stdout
    assert "model_quantized.onnx: " in result.stdout
    assert "\r" not in result.stdout + result.stderr
    assert "it/s" not in result.stderr


# Folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlanguage: en\nlicense: 'apache-2.0'\n---\n", "apache-2.0"),
        ("---\nlicense:\n- mit\n- apache-2.0\ntags:\n- x\n---\n", "mit, apache-2.0"),
        ("---\nlicense:\n---\n", ""),
        ("---\ntags: x\n---\nlicense: mit\n", ""),
        ("license: mit\n", ""),
        ("", ""),
    ],
)
def test_licence_is_that_of_the_card(folder: Path, card: str, licence: str) -> None:
    (folder / "README.md").write_text(card)
    assert open_checkpoint(folder, "a test").licence == licence


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "model-1.safetensors", "b": "model.part"}}, "does not tell the files"),
        ({"weight_map": {}}, "does not tell the files"),
        ({}, "does not tell the files"),
        ({"weight_map": {"a": "../model.safetensors"}}, "no file beside it"),
        ({"weight_map": {"a": "gone.safetensors"}}, "lacks 1 of the 1 files"),
    ],
)
def test_index_of_shards_must_make_sense(folder: Path, index: Any, message: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match=message):
        open_checkpoint(folder, "a test")


def test_pointer_in_place_of_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(SourceError, match="Git LFS pointer"):
        open_checkpoint(folder, "a test")


@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_kind_of_vocabulary_is_taken_along(folder: Path, name: str) -> None:
    (folder / name).write_text("a vocabulary")
    assert Path(name) in open_checkpoint(folder, "a test").copied_files()


def test_older_tokenizer_files_become_a_fast_tokenizer(tmp_path: Path) -> None:
    from pywebml.prepare.convert import Choices, convert

    folder = write_checkpoint(tmp_path / "slow", tiny_bert())
    vocabulary = tiny_tokenizer().get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=lambda word: vocabulary[word])) + "\n")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "model_max_length": 64}')
    lines: list[str] = []

    target = convert(
        open_checkpoint(folder, "a test"), tmp_path / "hub", "org/slow", Choices(modes=("q8",)), log=lines.append
    )

    assert any("Made tokenizer.json of vocab.txt" in line for line in lines)
    assert (target / "vocab.txt").is_file()
    assert not (folder / "tokenizer.json").exists()
    with quiet():
        fast = AutoTokenizer.from_pretrained(target)
    text = "The cat sits outside in the morning sun."
    assert fast(text)["input_ids"] == tiny_tokenizer().encode(text).ids
