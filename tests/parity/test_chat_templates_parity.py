"""Chat templates against `apply_chat_template` of transformers, on templates of the published shapes."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import models

from pywebml.errors import TokenizerError
from pywebml.tokenization import Tokenizer
from tests.parity.tokenizer_texts import texts

TEMPLATES = {
    "chatml": """{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}""",
    "llama 2": """{% if messages[0]['role'] == 'system' %}
  {% set loop_messages = messages[1:] %}
  {% set system_message = messages[0]['content'] %}
{% else %}
  {% set loop_messages = messages %}
  {% set system_message = false %}
{% endif %}
{% for message in loop_messages %}
  {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{ raise_exception('Roles must alternate user and assistant.') }}
  {% endif %}
  {% if loop.index0 == 0 and system_message != false %}
    {% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
  {% else %}
    {% set content = message['content'] %}
  {% endif %}
  {% if message['role'] == 'user' %}
    {{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
  {% else %}
    {{ ' ' + content.strip() + ' ' + eos_token }}
  {% endif %}
{% endfor %}""",
    "llama 3": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- set ns = namespace(system='', first=true) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set ns.system = message.content | trim %}
        {%- continue %}
    {%- endif %}
    {%- if ns.first %}
        {{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
        {%- if tools is not none %}
            {%- for tool in tools %}
                {{- tool | tojson(indent=4) }}
                {{- "\\n\\n" }}
            {%- endfor %}
        {%- endif %}
        {{- ns.system + "<|eot_id|>" }}
        {%- set ns.first = false %}
    {%- endif %}
    {{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' ~ (message.content | trim) ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}""",
    "gemma": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}""",
    "mistral": """{%- set user_messages = messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val | tojson }}
                    {%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- "[INST] " + message["content"] + "[/INST]" }}
    {%- elif message["role"] == "assistant" and message.tool_calls is defined %}
        {{- "[TOOL_CALLS] " + message.tool_calls | tojson + eos_token }}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- endif %}
{%- endfor %}""",
    "documents": """{% macro shown(document) %}# {{ document.title | upper }}
{{ document['text'] }}
{% endmacro %}
{% for document in documents or [] %}{{ shown(document) }}{% else %}No documents.
{% endfor %}{% for message in messages %}
{% generation %}{{ message.role[:1] }}: {{ message.content }}{% endgeneration %}
{% if loop.index > 3 %}{% break %}{% endif %}{% endfor %}{{ custom | default('none') }}
{{ dict(a=1).items() | list }} {{ [3, 1] | sort | join('-') }}""",
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "What the weather is like <there> & then: café.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
DOCUMENTS = [{"title": "One", "text": "First."}, {"title": "Zwei", "text": "Ünïcode."}]
CONFIG = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "unk_token": "<unk>"}


@cache
def both(name: str) -> tuple[Tokenizer, Any]:
    """Ours, and transformers'."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    rust = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    template: Any = TEMPLATES.get(name)
    if name == "named":
        template = [{"name": key, "template": TEMPLATES[value]} for key, value in NAMED.items()]
    config = {**CONFIG, "chat_template": template}
    make: Any = transformers.PreTrainedTokenizerFast
    theirs = make(tokenizer_object=rust, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    theirs.chat_template = {one["name"]: one["template"] for one in template} if name == "named" else template
    return Tokenizer.from_json(rust.to_str().encode(), json.dumps(config).encode()), theirs


NAMED = {"default": "chatml", "tool_use": "mistral", "rag": "documents"}

messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]), "content": texts},
        optional={
            "tool_calls": st.just([{"id": "a", "function": {"name": "f", "arguments": {"x": 1.5}}}]),
            "name": st.none(),
        },
    ),
    min_size=1,
    max_size=5,
)


def result(work: Any) -> str | None:
    """The text; None when the template refuses the messages."""
    try:
        text: str = work()
    except Exception:
        return None
    return text


@pytest.mark.parametrize("name", [*TEMPLATES, "named"])
@settings(max_examples=120, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    chat=messages, tools=st.sampled_from([None, TOOLS]), documents=st.sampled_from([None, DOCUMENTS]), data=st.data()
)
def test_templates_agree(name: str, chat: Any, tools: Any, documents: Any, data: st.DataObject) -> None:
    ours, theirs = both(name)
    options: dict[str, Any] = {"tools": tools, "documents": documents, "date_string": "26 Nov 2026"}
    options["add_generation_prompt"] = data.draw(st.booleans())
    if not options["add_generation_prompt"]:
        options["continue_final_message"] = data.draw(st.booleans())
    if name == "named":
        options["chat_template"] = data.draw(st.sampled_from([None, *NAMED]))
    if data.draw(st.booleans()):
        options["custom"] = [1, "two"]
    mine = result(lambda: ours.apply_chat_template(chat, **options))
    assert mine == result(lambda: theirs.apply_chat_template(chat, tokenize=False, **options))


def test_ordinary_chats_are_not_refused() -> None:
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
    ]
    for name in TEMPLATES:
        ours, theirs = both(name)
        text = ours.apply_chat_template(chat, tools=TOOLS, documents=DOCUMENTS, date_string="today")
        expected = theirs.apply_chat_template(
            chat, tools=TOOLS, documents=DOCUMENTS, date_string="today", tokenize=False
        )
        assert text == expected
        assert "Bye" in text


def test_a_templates_own_refusal_is_the_errors_message() -> None:
    ours, _ = both("gemma")
    with pytest.raises(TokenizerError, match="System role not supported"):
        ours.apply_chat_template([{"role": "system", "content": "x"}])
