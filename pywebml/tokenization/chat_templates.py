"""Chat templates: messages become the text that a model was trained on.

They are Jinja2, run by Jinja2 in its sandbox: a template comes with a model and is not trusted. Names, filters and
white-space rules are those of `apply_chat_template` of transformers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache, cached_property
from typing import Any, Final, TypeAlias

from pywebml.errors import TokenizerError
from pywebml.tokenization.fields import Fields, wrong_type

Message: TypeAlias = Mapping[str, Any]

DEFAULT: Final = "default"
TOOL_USE: Final = "tool_use"

_MOST_CHARACTERS: Final = 1 << 24
_MOST_COMPILED: Final = 32
_MOST_REPEATS: Final = 1 << 20
_LARGEST_EXPONENT: Final = 64
_END: Final = "CONTINUE_FINAL_MESSAGE_TAG "
_REASONING: Final = ("reasoning_content", "thinking", "reasoning")


class ChatTemplates:
    """The templates of a model.

    Args:
        templates: Name to source; a single one is called `default`.
        variables: What every template can read: the special tokens, by their role.
    """

    def __init__(self, templates: Mapping[str, str], variables: Mapping[str, object]) -> None:
        self._templates = templates
        self._variables = variables
        self._compiled: dict[str, Any] = {}

    @property
    def names(self) -> list[str]:
        """Names of the templates."""
        return sorted(self._templates)

    def render(
        self,
        messages: Sequence[Message],
        *,
        chat_template: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Make text of messages.

        Args:
            messages: Each with a `role` and a `content`; what is None in them is left out.
            chat_template: Name of a template, or a template itself. Default: `tool_use` when there are tools and a
                template of that name, else `default`.
            tools: JSON schemas of functions that the model may call.
            documents: With `title` and `text`, for models that answer from them.
            add_generation_prompt: Whether the text ends with what begins an answer.
            continue_final_message: The text ends with the last message, left open, so that the model goes on with it.
            variables: What else the template can read.

        Raises:
            TokenizerError: There is no such template, it is malformed, it does not accept these messages, or the
                arguments do not go together.
        """
        source = self._source(chat_template, tools)
        if not isinstance(messages, list | tuple) or not messages:
            raise TokenizerError("A chat needs a list of at least one message, such as {'role': 'user', 'content': …}.")
        for name, values in (("messages", messages), ("tools", tools or ()), ("documents", documents or ())):
            for value in values:
                if not isinstance(value, Mapping):
                    raise TokenizerError(f"{name} must be a list of objects; found {type(value).__name__}.", field=name)
        if continue_final_message and add_generation_prompt:
            raise TokenizerError("continue_final_message and add_generation_prompt exclude each other: choose one.")
        chat = [_with_reasoning({k: _plain(v) for k, v in message.items() if v is not None}) for message in messages]
        final = _left_open(chat[-1]) if continue_final_message else None
        text = self._run(
            source,
            {
                **self._variables,
                **(variables or {}),
                "messages": chat,
                "tools": _plain(None if tools is None else list(tools)),
                "documents": _plain(None if documents is None else list(documents)),
                "add_generation_prompt": add_generation_prompt,
            },
        )
        return text if final is None else _cut_behind(text, final)

    def _source(self, chosen: str | None, tools: object) -> str:
        if chosen is not None:
            return self._templates.get(chosen, chosen)
        if not self._templates:
            raise TokenizerError(
                "This model has no chat template. Give one as chat_template, or write the prompt yourself."
            )
        if tools is not None and TOOL_USE in self._templates:
            return self._templates[TOOL_USE]
        if DEFAULT in self._templates:
            return self._templates[DEFAULT]
        raise TokenizerError(
            f"This model has the chat templates {', '.join(self.names)} and no default: choose one by chat_template.",
            names=self.names,
        )

    def _run(self, source: str, variables: Mapping[str, Any]) -> str:
        jinja = _jinja()
        try:
            template = self._compiled.get(source)
            if template is None:
                if len(self._compiled) >= _MOST_COMPILED:
                    self._compiled.clear()
                template = self._compiled[source] = jinja.environment.from_string(source)
            return _joined(template.generate(variables))
        except TokenizerError:
            raise
        except Exception as error:
            # A template is a program of somebody else: any error may come out of it.
            raise TokenizerError(
                f"The chat template could not be applied: {type(error).__name__}: {error}",
                kind=type(error).__name__,
            ) from error


def _joined(pieces: Any) -> str:
    text: list[str] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > _MOST_CHARACTERS:
            raise TokenizerError(
                f"The chat template wrote more than {_MOST_CHARACTERS} characters and was stopped.",
                limit=_MOST_CHARACTERS,
            )
        text.append(piece)
    return "".join(text)


def _plain(value: Any) -> Any:
    """Values without methods that the sandbox knows nothing of: plain JSON types, for anything else its type's name."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind.__call__(value) if type(value) is not kind else value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else list(map(_plain, value))
    return f"<{type(value).__name__}>"


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose reasoning has the name that templates read, whatever it was called."""
    found = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    return message if found is None else {"thinking": found, **message, "reasoning_content": found}


def _left_open(message: dict[str, Any]) -> str:
    """Mark the end of the last message's text; returns that text."""
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + _END
        return content
    if isinstance(content, list):
        for block in reversed(content):
            if isinstance(block, dict) and isinstance(block.get("text"), str):
                text: str = block["text"]
                block["text"] = text + _END
                return text
    raise TokenizerError("continue_final_message needs a last message with text in it.")


def _cut_behind(text: str, final: str) -> str:
    mark = _END.strip()
    if mark not in text or final.strip() not in text:
        raise TokenizerError(
            "continue_final_message: the chat template changes or drops the last message, so it cannot be continued."
        )
    place = text.rindex(mark)
    kept = text[:place]
    # Where the template took the mark's space off, it took the message's own off too.
    return kept if text[place : place + len(_END)] == _END else kept.rstrip()


class _Jinja:
    """Jinja2, imported when a chat template is first used."""

    def __init__(self) -> None:
        try:
            import jinja2
            from jinja2 import ext, sandbox, utils
        except ImportError as error:
            raise TokenizerError("Chat templates need the package 'jinja2'. Install it.") from error
        self._jinja2 = jinja2
        self._extensions: Any = ext
        self._sandbox: Any = sandbox
        self._utils: Any = utils

    @cached_property
    def environment(self) -> Any:
        """Where templates run."""
        environment = self._environment_type()(
            trim_blocks=True, lstrip_blocks=True, extensions=[self._generation_block(), self._extensions.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(
            raise_exception=self._raise_exception,
            strftime_now=_strftime_now,
            dict=_Dictionary(),
            namespace=self._namespace_type(),
        )
        return environment

    def _raise_exception(self, message: str) -> None:
        raise self._jinja2.exceptions.TemplateError(message)

    def _environment_type(self) -> type:
        security_error = self._sandbox.SecurityError

        class Environment(self._sandbox.ImmutableSandboxedEnvironment):  # type: ignore[misc, name-defined]
            intercepted_binops = frozenset(("*", "**"))

            def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
                sizes = [value for value in (left, right) if isinstance(value, int)]
                limit = _LARGEST_EXPONENT if operator == "**" else _MOST_REPEATS
                sequence = any(isinstance(value, str | list | tuple | bytes) for value in (left, right))
                if (operator == "**" or sequence) and any(abs(size) > limit for size in sizes):
                    raise security_error(f"the operator {operator} makes something too large")
                return super().call_binop(context, operator, left, right)

        return Environment

    def _namespace_type(self) -> type:
        security_error = self._sandbox.SecurityError

        def check(name: object) -> None:
            if isinstance(name, str) and name.startswith("_"):
                raise security_error(f"a namespace has no attribute {name!r}")

        class Namespace(self._utils.Namespace):  # type: ignore[misc, name-defined]
            def __init__(*args: Any, **attributes: Any) -> None:
                values = dict(*args[1:], **attributes)
                for name in values:
                    check(name)
                super(Namespace, args[0]).__init__(values)

            def __setitem__(self, name: str, value: Any) -> None:
                check(name)
                super().__setitem__(name, value)

        return Namespace

    def _generation_block(self) -> type:
        nodes = self._jinja2.nodes

        class Generation(self._extensions.Extension):  # type: ignore[misc, name-defined]
            """`{% generation %}` marks what a model wrote, which matters in training; here it is plain content."""

            tags = frozenset(("generation",))

            def parse(self, parser: Any) -> Any:
                line = next(parser.stream).lineno
                body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
                return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

            def _content(self, caller: Callable[[], str]) -> str:
                return caller()

        return Generation


@cache
def _jinja() -> _Jinja:
    return _Jinja()


class _Dictionary:
    """`dict` for templates, without its attributes."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """A dictionary with one value for all keys."""
        return dict.fromkeys(*args)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter writes HTML escapes.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    # Local time without a zone, as the template's author expects.
    return datetime.now().strftime(form)


# ---------------------------------------------------------------------------------------------- from the files


_NAMED_FILE: Final = re.compile(r"additional_chat_templates/([^/]+)\.jinja")


def read_chat_templates(config: Fields, files: Mapping[str, bytes]) -> dict[str, str]:
    """The templates of a model, by name.

    Args:
        config: `tokenizer_config.json`.
        files: `chat_template.jinja`, which goes before the configuration, and `additional_chat_templates/*.jinja`.

    Raises:
        TokenizerError: Something is malformed.
    """
    found: dict[str, str] = {}
    value = config.value("chat_template")
    if isinstance(value, list):
        for item, place in config.sequence("chat_template"):
            fields = Fields(item, place)
            found[fields.string("name")] = fields.string("template")
    elif value is not None:
        if not isinstance(value, str):
            raise wrong_type(config.place_of("chat_template"), "a string or a list of named templates", value)
        found[DEFAULT] = value
    for name, data in sorted(files.items()):
        named = _NAMED_FILE.fullmatch(name)
        if name != "chat_template.jinja" and named is None:
            continue
        try:
            found[named[1] if named else DEFAULT] = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{name} is not UTF-8. Download the file again.", place=name) from error
    return found
