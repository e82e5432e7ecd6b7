import pytest
from hypothesis import given
from hypothesis import strategies as st

from pywebml.errors import OptionsError
from pywebml.hub.addresses import HUBS, HubAddress, is_pinned


def address(root: str = "https://hub.example/models/", template: str = "{model}/{revision}") -> HubAddress:
    return HubAddress.of(root, template)


def test_url_is_root_template_and_path() -> None:
    assert (
        address().file_url("org/name", "main", "onnx/model.onnx")
        == "https://hub.example/models/org/name/main/onnx/model.onnx"
    )
    assert (
        HUBS["huggingface"].file_url("org/name", "main", "config.json")
        == "https://huggingface.co/org/name/resolve/main/config.json"
    )
    assert (
        HUBS["mozilla"].file_url("Mozilla/distilvit", "v0.5.0", "config.json")
        == "https://model-hub.mozilla.org/Mozilla/distilvit/v0.5.0/config.json"
    )


def test_root_gets_its_slash_and_may_be_relative_to_the_page() -> None:
    assert address("https://hub.example/models").root_url == "https://hub.example/models/"
    relative = HubAddress.of("hub/", "{model}/{revision}", base_url="https://page.example/a/index.html")
    assert relative.root_url == "https://page.example/a/hub/"


def test_segments_are_escaped_once() -> None:
    url = address().file_url("org/name", "refs/pr/1", "a b/100%/é#?.json")
    assert url == "https://hub.example/models/org/name/refs%2Fpr%2F1/a%20b/100%25/%C3%A9%23%3F.json"


def test_owner_keeps_hubs_apart() -> None:
    owners = {
        address(root).owner("org/name")
        for root in ("https://a.example/", "https://b.example/", "https://a.example/x/", "http://a.example:81/")
    }
    assert len(owners) == 4
    assert address().owner("org/name") == "hub.example/models/org/name"


@pytest.mark.parametrize(
    "root",
    [
        "",
        "hub/",
        "ftp://hub.example/",
        "javascript:alert(1)",
        "https://",
        "https://user:pass@hub.example/",
        "https://hub.example/?a=b",
        "https://hub.example/#a",
        "http://[",
        "http://hub.example:99999/",
    ],
)
def test_root_that_is_no_plain_address_is_refused(root: str) -> None:
    with pytest.raises(OptionsError) as caught:
        address(root)
    assert caught.value.details["field"] == "hubRootUrl"


@pytest.mark.parametrize(
    "template",
    [
        "",
        "{model}",
        "{revision}",
        "{model}/{revision}/{model}",
        "{model}/{revision}?download=true",
        "../{model}/{revision}",
        "https://other.example/{model}/{revision}",
        "//other.example/{model}/{revision}",
        "{model}//{revision}",
        "{model}/{revision}/{token}",
        "{model}\\{revision}",
        "{model}-{revision}",
    ],
)
def test_template_of_anything_but_words_placeholders_and_slashes_is_refused(template: str) -> None:
    with pytest.raises(OptionsError) as caught:
        address(template=template)
    assert caught.value.details["field"] == "hubUrlTemplate"


@pytest.mark.parametrize(
    "model",
    [
        "",
        "/",
        "org/",
        "/name",
        "org//name",
        "../name",
        "org/..",
        "org/.",
        "org\\name",
        "https://x.example/a",
        "a b",
        "org/na\nme",
        "org/name?x",
        "org/name#x",
        "org/a..b",
        "é",
        "a" * 2000,
        "org/%2e%2e",
    ],
)
def test_model_id_that_could_lead_elsewhere_is_refused(model: str) -> None:
    with pytest.raises(OptionsError) as caught:
        address().file_url(model, "main", "config.json")
    assert caught.value.details["field"] == "modelId"


@pytest.mark.parametrize("name", ["", "/", "/a", "a/", "a//b", "..", "a/../b", ".", "a\\b", "a\0", "a\n", "\ud800"])
def test_revision_or_path_that_could_lead_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(OptionsError):
        address().file_url("org/name", name, "config.json")
    with pytest.raises(OptionsError):
        address().file_url("org/name", "main", name)


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_every_url_stays_below_the_root(model: str, revision: str, path: str) -> None:
    try:
        url = address().file_url(model, revision, path)
    except OptionsError:
        return
    assert url.startswith("https://hub.example/models/")
    assert ".." not in url.split("/")
    assert url.isascii()


@pytest.mark.parametrize("revision", ["v1.0.0", "1.2", "v0.5.0", "v1.2.3-rc.1", "a" * 40, "0" * 64])
def test_versions_and_commits_are_pinned(revision: str) -> None:
    assert is_pinned(revision)


@pytest.mark.parametrize("revision", ["main", "v1", "dev-1.0", "a" * 39, "A" * 40, "refs/pr/1", "1.0/x"])
def test_branches_are_not_pinned(revision: str) -> None:
    assert not is_pinned(revision)
