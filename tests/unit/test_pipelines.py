"""`AutoTokenizer`, over real HTTP."""

from __future__ import annotations

import pytest

from pywebml import AutoTokenizer
from pywebml.errors import FileNotFoundOnHubError
from tests.faults.server import FaultServer

pytestmark = pytest.mark.usefixtures("surroundings")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "##s"]
TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"


def publish(server: FaultServer, **files: str) -> None:
    for name, text in files.items():
        server.write(f"hub/org/words/v1.0.0/{name.replace('__', '.')}", text)


async def test_tokenizer_of_a_model_that_has_a_vocabulary_only(server: FaultServer) -> None:
    publish(server, vocab__txt="\n".join(WORDS), tokenizer_config__json='{"tokenizer_class": "BertTokenizer"}')
    tokenizer = await AutoTokenizer.from_pretrained("org/words", revision="v1.0.0")
    assert tokenizer.encode("a cats").tokens == ["[CLS]", "a", "cat", "##s", "[SEP]"]
    server.forget()
    again = await AutoTokenizer.from_pretrained("org/words", revision="v1.0.0")
    assert again.encode("cat").ids == tokenizer.encode("cat").ids
    assert server.requests() == []


async def test_chat_template_comes_along(server: FaultServer) -> None:
    publish(
        server,
        vocab__txt="\n".join(WORDS),
        tokenizer_config__json='{"tokenizer_class": "BertTokenizer"}',
        chat_template__jinja=TEMPLATE,
    )
    tokenizer = await AutoTokenizer.from_pretrained("org/words", revision="v1.0.0")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a cat"}], tokenize=False)
    assert text == "<user>a cat"


async def test_model_without_any_vocabulary_names_the_file_that_is_missed(server: FaultServer) -> None:
    publish(server, config__json="{}")
    with pytest.raises(FileNotFoundOnHubError, match=r"tokenizer\.json"):
        await AutoTokenizer.from_pretrained("org/words", revision="v1.0.0")
