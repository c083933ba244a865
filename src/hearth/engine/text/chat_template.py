"""Chat templates: messages in, prompt text out, as transformers' `apply_chat_template` renders it.

A template is a program that came with the weights, so it runs in jinja2's immutable sandbox, with
the filters, globals and extensions that Hugging Face templates expect. What a template raises is
the client's error: its message says which conversation the model was not trained for.

Content is given to a template in the shape it can read, decided once by looking at its syntax
tree (`content_format`):

| the template                                         | format | text-only lists are         |
|------------------------------------------------------|--------|-----------------------------|
| never loops over a message's content                 | string | joined by newlines          |
| loops over it, and tests whether it is a string      | either | kept (see below)            |
| loops over it without such a test                    | parts  | kept; strings become a list |

A template of the last two kinds may loop for some roles only and print the list of another as it is
(GLM-4.1V does so for the system). Text-only lists are therefore lists that print as their joined
text (`_TextParts`): nothing has to be looked for in what was rendered, which may be long. Image
parts, {"type": "image"}, are the template's to write; a template of the first kind writes none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

from hearth.core.errors import RequestError, TokenizerError
from hearth.engine.text.tokenizer_config import TokenizerConfig

ContentFormat = Literal["string", "either", "parts"]
Message = dict[str, Any]

# Stands behind the text that is to be continued while it is rendered; the space shows whether the
# template strips its messages. (transformers finds the place in the same way.)
_MARK = "HEARTH_END_OF_FINAL_MESSAGE"

# What a template's own code can raise besides jinja2's errors (a wrong type, a missing key …).
_TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


class _GenerationExtension(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks assistant text for training; here it renders."""

    tags = {"generation"}  # noqa: RUF012 -- jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled template with the special tokens that it may print."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises TokenizerError when the template is not valid jinja2."""
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            tree = environment.parse(source)
        except jinja2.TemplateSyntaxError as error:
            raise TokenizerError(
                f"the chat template is broken: line {error.lineno}: {error.message}",
                hint="restore the model's own chat_template.jinja or tokenizer_config.json",
            ) from error
        self._special_tokens = dict(special_tokens)
        self.content_format: ContentFormat = _content_format(tree)
        self._knows_developer = "developer" in source

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt; it already holds every special token that the model wants.

        `variables` are further names for the template, such as `enable_thinking`. With
        `continue_final_message` the prompt ends where the last message's text does.

        Raises:
            RequestError: the template refused the messages, or failed on them.
        """
        context: dict[str, Any] = {**self._special_tokens, "tools": None, "documents": None}
        context.update(variables or {})
        shaped = [self._shape(message) for message in messages]
        if continue_final_message:
            shaped[-1]["content"] = _marked(shaped[-1].get("content"))
        for message in shaped:
            if _is_text_only(message.get("content")):
                message["content"] = _TextParts(message["content"])
        context["add_generation_prompt"] = add_generation_prompt
        rendered = self._rendered(context, shaped)
        return _cut_at_mark(rendered) if continue_final_message else rendered

    def _rendered(self, context: Mapping[str, Any], messages: Sequence[Message]) -> str:
        """What the template makes of the messages. Raises RequestError where it refuses them."""
        try:
            return self._template.render(**{**context, "messages": messages})
        except _TEMPLATE_FAULTS as error:
            raise RequestError(
                f"the model's chat template does not accept these messages: {error}",
                hint="check the roles, their order and the content of the messages",
                param="messages",
            ) from error

    def _shape(self, message: Message) -> Message:
        """The message as this template can read it; the caller's is not changed."""
        shaped = dict(message)
        content = shaped.get("content")
        if isinstance(content, str) and self.content_format == "parts":
            shaped["content"] = [{"type": "text", "text": content}]
        elif isinstance(content, list) and self.content_format == "string":
            shaped["content"] = _joined(content)
        if shaped.get("role") == "developer" and not self._knows_developer:
            shaped["role"] = "system"  # OpenAI's newer name of the same role
        return shaped


def _joined(content: Sequence[Mapping[str, Any]]) -> str:
    """The text of a list of parts."""
    return "\n".join(str(part["text"]) for part in content if "text" in part)


class _TextParts(list[Mapping[str, Any]]):
    """Parts that are all text: a list to loop over, the joined text where it is printed."""

    def __str__(self) -> str:
        return _joined(self)


def _is_text_only(content: object) -> bool:
    return isinstance(content, list) and bool(content) and all("text" in part for part in content)


def _marked(content: object) -> object:
    """Content with the mark behind its text. Raises RequestError."""
    if isinstance(content, str):
        return f"{content}{_MARK} "
    if isinstance(content, list) and content and "text" in content[-1]:
        return [*content[:-1], {**content[-1], "text": f"{content[-1]['text']}{_MARK} "}]
    raise RequestError(
        "continue_final_message: the last message has no text to go on with",
        hint="end the messages with one that has text, an assistant's as a rule",
        param="messages",
    )


def _cut_at_mark(rendered: str) -> str:
    """What stands before the mark. Raises RequestError when the template left the text out."""
    text, mark, rest = rendered.rpartition(_MARK)
    if not mark:
        raise RequestError(
            "continue_final_message: the model's chat template does not print the last message",
            hint="leave continue_final_message out",
            param="continue_final_message",
        )
    # A template may print the last message more than once.
    text = text.replace(f"{_MARK} ", "").replace(_MARK, "")
    return text if rest.startswith(" ") else text.rstrip()


def load_chat_template(model_dir: Path, config: TokenizerConfig) -> ChatTemplate | None:
    """Finds the template: chat_template.jinja, chat_template.json, then tokenizer_config.json.

    Returns None when the model has none; such a model can be loaded but cannot chat.

    Raises:
        TokenizerError: there is one, but it cannot be read or compiled.
    """
    source = _find_source(model_dir, config)
    return None if source is None else ChatTemplate(source, config.special_tokens)


def _find_source(model_dir: Path, config: TokenizerConfig) -> str | None:
    jinja_file, json_file = model_dir / "chat_template.jinja", model_dir / "chat_template.json"
    try:
        if jinja_file.is_file():
            return jinja_file.read_text(encoding="utf-8")
        if json_file.is_file():
            value = json.loads(json_file.read_text(encoding="utf-8"))
            return _named_template(value.get("chat_template") if isinstance(value, dict) else value)
    except (ValueError, OSError) as error:
        raise TokenizerError(
            f"the chat template in {model_dir} cannot be read: {error}",
            hint="download chat_template.jinja or chat_template.json again",
        ) from error
    return _named_template(config.chat_template)


def _named_template(value: object) -> str | None:
    """The template itself, or the one named `default` (else the first) of a list or mapping."""
    if value is None or isinstance(value, str):
        return value
    named: dict[str, str] = {}
    if isinstance(value, list):
        for entry in value:
            if isinstance(entry, dict) and isinstance(entry.get("template"), str):
                named[str(entry.get("name"))] = entry["template"]
    elif isinstance(value, dict):
        named = {str(name): text for name, text in value.items() if isinstance(text, str)}
    if not named:
        raise TokenizerError(
            f"chat_template is a {type(value).__name__} without a template in it",
            hint='permitted: a string, or a list of {"name": …, "template": …}',
        )
    return named.get("default") or next(iter(named.values()))


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """The environment of transformers' `apply_chat_template`."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationExtension, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; jinja2's own filter would escape `<`, `>`, `&` and `'` for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> str:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)  # noqa: DTZ005 -- templates mean the local date


def _content_format(tree: jinja2.nodes.Template) -> ContentFormat:
    """How the template reads content, from its syntax tree; see the module's table."""
    loops = any(_is_content(loop.iter) for loop in tree.find_all(jinja2.nodes.For))
    if not loops:
        return "string"
    tests = any(
        test.name == "string" and _is_content(test.node)
        for test in tree.find_all(jinja2.nodes.Test)
    )
    return "either" if tests else "parts"


def _is_content(node: jinja2.nodes.Node) -> bool:
    """Whether an expression is `content`, `message.content`, `message["content"]`, or filtered."""
    if isinstance(node, jinja2.nodes.Filter) and node.node is not None:
        return _is_content(node.node)
    if isinstance(node, jinja2.nodes.Name):
        return node.name == "content"
    if isinstance(node, jinja2.nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, jinja2.nodes.Getitem):
        return isinstance(node.arg, jinja2.nodes.Const) and node.arg.value == "content"
    return False
