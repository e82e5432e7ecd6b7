"""Names of models, revisions and files, and the URLs that they make.

Every part of a URL comes from a table or was checked here, so that no model, settings record or manifest can
lead a request to another origin or out of its own folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias
from urllib.parse import quote, urljoin, urlsplit

from pywebml.errors import OptionsError

_MODEL_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_TEMPLATE_SEGMENT = re.compile(r"\{model\}|\{revision\}|[A-Za-z0-9_-]+")
_VERSION_TAG = re.compile(r"v?\d+(\.\d+){1,3}([-+.][0-9A-Za-z][0-9A-Za-z.+-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_LONGEST_NAME = 1024
_HUGGING_FACE_TEMPLATE = "{model}/resolve/{revision}"

Listing: TypeAlias = Literal["manifest", "huggingface", "none"]


def check_model_id(model: str) -> str:
    """`name` or `org/name`: letters, digits, `.`, `_`, `-`. Raises `OptionsError`."""
    fits = isinstance(model, str) and all(
        _MODEL_SEGMENT.fullmatch(segment) and ".." not in segment for segment in model.split("/")
    )
    if not fits or len(model) > _LONGEST_NAME:
        raise OptionsError(
            f"{model!r} is no model id. Give it as on the hub, like 'org/name': letters, digits, '.', '_', '-'.",
            field="modelId",
            value=str(model),
        )
    return model


def check_revision(revision: str) -> str:
    """A branch, tag or commit, like `main`, `v1.2.3` or `refs/pr/1`. Raises `OptionsError`."""
    return _check_segments(revision, "modelRevision", "revision", "'main', 'v1.2.3' or a commit")


def check_path(path: str) -> str:
    """A file inside a model, like `onnx/model.onnx`. Raises `OptionsError`."""
    return _check_segments(path, "file", "file of a model", "'onnx/model.onnx'")


def _check_segments(value: str, field: str, what: str, example: str) -> str:
    fits = isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME
    for segment in value.split("/") if fits else ():
        fits = fits and segment not in {"", ".", ".."} and "\\" not in segment and segment.isprintable()
    if not fits:
        raise OptionsError(
            f"{value!r} cannot be the name of a {what}. Give a relative one, like {example}: no '..', no empty "
            "part, no backslash, no control character.",
            field=field,
            value=str(value),
        )
    return value


def is_pinned(revision: str) -> bool:
    """Whether a revision names the same bytes for ever: a commit, or a version tag like `v1.2.3`."""
    return bool(_COMMIT.fullmatch(revision) or _VERSION_TAG.fullmatch(revision))


@dataclass(frozen=True, slots=True)
class HubAddress:
    """Where a hub's files are: `{root_url}{url_template}/{path}`.

    Attributes:
        root_url: Absolute, with a slash at its end.
        url_template: Words, `{model}` and `{revision}`, with slashes between them.
        listing: How the hub tells which files a model has: a `manifest.json` beside them, the API of Hugging Face, or
            (`none`) not at all.
    """

    root_url: str
    url_template: str
    listing: Listing = "manifest"

    @classmethod
    def of(cls, root_url: str, url_template: str, *, base_url: str = "", listing: Listing | None = None) -> HubAddress:
        """A checked address.

        Args:
            root_url: Absolute, or relative to `base_url`.
            url_template: See the class.
            base_url: Of the page; empty where there is none.
            listing: See the class; None: `huggingface` for that hub's own template, else `manifest`.

        Raises:
            OptionsError: `root_url` or `url_template` is not usable.
        """
        try:
            root = urljoin(base_url, root_url)
            parts = urlsplit(root)
            port = parts.port
        except ValueError:
            root, parts, port = "", urlsplit(""), None
        plain = parts.username is None and not parts.query and not parts.fragment and port != 0
        if parts.scheme not in {"http", "https"} or not parts.hostname or not plain:
            raise OptionsError(
                f"{root_url!r} cannot be the root of a hub. Give an http or https address, like "
                "'https://models.example/hub/', without query, fragment or password.",
                field="hubRootUrl",
                value=root_url,
            )
        segments = url_template.strip("/").split("/")
        if (
            any(not _TEMPLATE_SEGMENT.fullmatch(segment) for segment in segments)
            or segments.count("{model}") != 1
            or segments.count("{revision}") != 1
        ):
            raise OptionsError(
                f"{url_template!r} cannot be the URL template of a hub. Use words, {{model}} and {{revision}} "
                "(each of the two once), with slashes between them, like '{model}/resolve/{revision}'.",
                field="hubUrlTemplate",
                value=url_template,
            )
        template = "/".join(segments)
        if listing is None:
            listing = "huggingface" if template == _HUGGING_FACE_TEMPLATE else "manifest"
        return cls(root if root.endswith("/") else f"{root}/", template, listing)

    def file_url(self, model: str, revision: str, path: str) -> str:
        """The URL of a file. Raises `OptionsError` for names that are not allowed."""
        # A slash in a branch's name would be a folder: it is escaped, as hubs expect.
        words = {
            "{model}": check_model_id(model),
            "{revision}": quote(check_revision(revision), safe=""),
        }
        filled = [words.get(segment, segment) for segment in self.url_template.split("/")]
        return f"{self.root_url}{'/'.join(filled)}/{quote(check_path(path), safe='/')}"

    def tree_url(self, model: str, revision: str) -> str:
        """Where the API of Hugging Face lists the files of a model."""
        tree = f"api/models/{check_model_id(model)}/tree/{quote(check_revision(revision), safe='')}"
        return f"{self.root_url}{tree}?recursive=true"

    def pointer_url(self, model: str, revision: str, path: str) -> str:
        """Where Hugging Face has what git itself holds of a file: of a large one, the pointer of Git LFS."""
        raw = replace(self, url_template=_HUGGING_FACE_TEMPLATE.replace("resolve", "raw"))
        return raw.file_url(model, revision, path)

    def owner(self, model: str) -> str:
        """`host/path/org/name`: the model's name among those of all hubs."""
        return f"{self.owner_prefix}{check_model_id(model)}"

    @property
    def owner_prefix(self) -> str:
        """`host/path/`."""
        parts = urlsplit(self.root_url)
        return f"{parts.netloc.lower()}{parts.path}"


HUBS: Mapping[str, HubAddress] = {
    "huggingface": HubAddress("https://huggingface.co/", _HUGGING_FACE_TEMPLATE, "huggingface"),
    "mozilla": HubAddress("https://model-hub.mozilla.org/", "{model}/{revision}", "none"),
}
"""Public hubs. Nothing is requested from them unless a caller asks for it."""
