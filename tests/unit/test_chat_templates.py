"""Chat templates that are malformed, hostile or used in the wrong way."""

from __future__ import annotations

from typing import Any

import pytest

from pywebml.errors import TokenizerError
from pywebml.tokenization import ChatTemplates

CHAT = [{"role": "user", "content": "Hi"}]


def render(source: str, messages: Any = CHAT, **options: Any) -> str:
    return ChatTemplates({"default": source}, {"bos_token": "<s>"}).render(messages, **options)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% set ns = namespace(_x=1) %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ messages.append(1) }}",
        "{{ dict.__call__.__globals__ }}",
        "{{ 'a' * 100000000 }}",
        "{{ [0] * 100000000 }}",
        "{{ 10 ** 1000000 }}",
        "{% for i in range(10000000) %}x{% endfor %}",
        "{% for i in range(90000) %}{{ 'a' * 1000 }}{% endfor %}",
        "{% include 'other' %}",
        "{% if %}",
        "{{ undefined.attribute }}",
        "{{ raise_exception('no') }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_hostile_or_malformed_template_is_an_error(source: str) -> None:
    try:
        text = render(source)
    except TokenizerError:
        return
    # What the sandbox takes for undefined is empty text.
    assert not text.strip()


def test_messages_are_plain_data_to_a_template() -> None:
    class Tricky:
        def __str__(self) -> str:
            return "secret"

    assert render("{{ messages[0].content }}", [{"role": "user", "content": Tricky()}]) == "<Tricky>"
    assert render("{{ messages[0].content }}", [{"role": "user", "content": ("a", 1, 2.5, True, None)}]).startswith("(")


def test_the_callers_messages_stay_as_they_are() -> None:
    chat: list[dict[str, Any]] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b ", "name": None},
    ]
    before = [dict(message) for message in chat]
    assert render("{% for m in messages %}{{ m.content }}|{% endfor %}", chat, continue_final_message=True) == "a|b "
    assert chat == before


def test_variables_of_the_caller_go_before_special_tokens() -> None:
    assert render("{{ bos_token }}{{ x }}", variables={"bos_token": "!", "x": 1}) == "!1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"messages": []}, "at least one message"),
        ({"messages": "Hi"}, "at least one message"),
        ({"messages": ["Hi"]}, "messages must be a list of objects"),
        ({"messages": CHAT, "tools": ["f"]}, "tools must be a list of objects"),
        ({"messages": CHAT, "documents": [1]}, "documents must be a list of objects"),
        ({"messages": CHAT, "continue_final_message": True, "add_generation_prompt": True}, "exclude each other"),
        ({"messages": [{"role": "user"}], "continue_final_message": True}, "text in it"),
        ({"messages": CHAT, "continue_final_message": True}, "cannot be continued"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_unusable_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        ChatTemplates({"default": "nothing"}, {}).render(**arguments)


def test_a_model_without_a_template_says_so() -> None:
    with pytest.raises(TokenizerError, match="no chat template"):
        ChatTemplates({}, {}).render(CHAT)
    with pytest.raises(TokenizerError, match="a, b and no default"):
        ChatTemplates({"a": "", "b": ""}, {}).render(CHAT)
    assert ChatTemplates({}, {}).render(CHAT, chat_template="{{ messages[0].role }}") == "user"


def test_strftime_now_is_the_local_time() -> None:
    assert len(render("{{ strftime_now('%Y') }}")) == 4
