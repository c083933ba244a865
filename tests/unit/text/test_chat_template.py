"""Templates render as transformers renders them, fail clearly, and cannot break out."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tests.unit.text import builders, templates

from hearth.core.errors import RequestError, TokenizerError
from hearth.engine.text.chat_template import ChatTemplate, load_chat_template
from hearth.engine.text.tokenizer import Tokenizer
from hearth.engine.text.tokenizer_config import TokenizerConfig

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one turn": [{"role": "user", "content": "Hi"}],
    "history": [
        {"role": "user", "content": " Wer bist du? <b>&'\" "},
        {"role": "assistant", "content": "<think>思考</think><answer>do()</answer>"},
        {"role": "user", "content": "继续 🙂\n\n"},
    ],
    "system": [
        {"role": "system", "content": "You are a phone agent.\n今天的日期是"},
        {"role": "user", "content": "打开设置", "meta": {"ключ": ["<é>", 1.5, None]}},
    ],
    "skipped": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "skip": True},
        {"role": "user", "content": "c"},
    ],
}
STYLES = {
    name: getattr(templates, name) for name in ("CHATML", "LLAMA3", "GLM4", "MISTRAL", "MACRO")
}


def _theirs(
    template: str, messages: list[dict[str, Any]], prompt: bool, *, goes_on: bool = False
) -> str:
    from transformers import PreTrainedTokenizerFast

    tokenizer_class: Any = PreTrainedTokenizerFast  # its constructor is not typed
    theirs = tokenizer_class(tokenizer_object=builders.byte_fallback(), **SPECIAL)
    rendered = theirs.apply_chat_template(
        messages,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=prompt,
        continue_final_message=goes_on,
    )
    assert isinstance(rendered, str)
    return rendered


@pytest.mark.parametrize("final", ["hearth is", "hearth is \n", " a <b>"])
@pytest.mark.parametrize("style", STYLES)
def test_a_last_message_is_left_open_as_transformers_leaves_it(style: str, final: str) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": final}]
    ours = ChatTemplate(STYLES[style], SPECIAL).render(
        messages, add_generation_prompt=False, continue_final_message=True
    )
    theirs = _theirs(STYLES[style], messages, False, goes_on=True)
    assert ours == theirs.replace("CONTINUE_FINAL_MESSAGE_TAG ", "")  # where it is printed twice
    assert messages[-1]["content"] == final


def test_what_cannot_be_continued_is_refused() -> None:
    silent = ChatTemplate("{{ messages[0].content }}", SPECIAL)
    two = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}]
    with pytest.raises(RequestError, match="does not print the last message"):
        silent.render(two, continue_final_message=True)
    with pytest.raises(RequestError, match="no text to go on with"):
        silent.render([{"role": "assistant", "content": None}], continue_final_message=True)


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("style", STYLES)
def test_renders_as_transformers_does(style: str, chat: str, prompt: bool) -> None:
    template, messages = STYLES[style], CHATS[chat]
    if style == "MISTRAL" and chat in ("system", "skipped"):
        if chat == "system":
            with pytest.raises(RequestError, match="roles must alternate"):
                ChatTemplate(template, SPECIAL).render(messages)
            return
        messages = [*messages[:2]]
    ours = ChatTemplate(template, SPECIAL).render(messages, add_generation_prompt=prompt)
    assert ours == _theirs(template, messages, prompt)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (templates.CHATML, "string"),
        (templates.LLAMA3, "string"),
        (templates.GLM4, "either"),
        (templates.MACRO, "either"),
        (templates.PARTS_ONLY, "parts"),
    ],
)
def test_the_content_format_is_read_from_the_template(template: str, expected: str) -> None:
    assert ChatTemplate(template, {}).content_format == expected


def test_a_text_only_list_renders_like_its_string() -> None:
    text = [{"role": "user", "content": "one"}]
    listed = [{"role": "user", "content": [{"type": "text", "text": "one"}]}]
    for source in (*STYLES.values(), templates.PARTS_ONLY):
        if source is templates.MACRO:  # it prints the message itself, too
            continue
        template = ChatTemplate(source, SPECIAL)
        assert template.render(text) == template.render(listed)
        assert "one" in template.render(text)


def test_parts_are_joined_by_newlines_where_a_template_wants_a_string() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    rendered = ChatTemplate(templates.CHATML, {}).render([{"role": "user", "content": parts}])
    assert "one\ntwo<|im_end|>" in rendered


def test_the_callers_messages_are_not_changed() -> None:
    messages = [{"role": "developer", "content": "x"}]
    rendered = ChatTemplate(templates.PARTS_ONLY, {}).render(messages)
    assert rendered == "system: x"
    assert messages == [{"role": "developer", "content": "x"}]


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages[5].content.text }}",
        "{{ 1 + 'a' }}",
        "{{ messages[0]['content'] / 2 }}",
        "{{ undefined_function() }}",
        "{{ raise_exception('nein') }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ range(100000000) | list }}",
    ],
)
def test_what_a_template_raises_is_the_requests_error(source: str) -> None:
    with pytest.raises(RequestError, match="chat template does not accept"):
        ChatTemplate(source, {}).render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize("source", ["{% if %}", "{{ x | nofilter }}", "{% endfor %}"])
def test_a_template_with_wrong_syntax_is_refused_at_the_start(source: str) -> None:
    with pytest.raises(TokenizerError, match=r"template is broken: line 1"):
        ChatTemplate(source, {})


def _load(path: Path) -> str | None:
    template = load_chat_template(path, Tokenizer.load(path).config)
    return None if template is None else template.render([])


def test_the_template_is_found_in_each_of_its_places(tmp_path: Path) -> None:
    builders.save(builders.byte_level(), tmp_path)
    assert _load(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert _load(tmp_path) == "default"
    config.write_text(json.dumps({"chat_template": "config"}))
    assert _load(tmp_path) == "config"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert _load(tmp_path) == "json"
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert _load(tmp_path) == "jinja"


@pytest.mark.parametrize("value", [7, [], [{"name": "x"}], {}])
def test_a_template_of_a_wrong_type_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(TokenizerError, match="without a template"):
        load_chat_template(tmp_path, TokenizerConfig(chat_template=value))


def test_an_unreadable_template_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TokenizerError, match="cannot be read"):
        load_chat_template(tmp_path, TokenizerConfig())


def test_image_parts_are_the_template_s_to_write() -> None:
    template = ChatTemplate(templates.GLM4, {})
    content = [{"type": "image"}, {"type": "text", "text": "what?"}, {"type": "image"}]
    image = "<|begin_of_image|><|image|><|end_of_image|>"
    rendered = template.render([{"role": "user", "content": content}])
    assert rendered == f"[gMASK]<sop><|user|>\n{image}what?{image}<|assistant|>\n"


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_a_list_that_a_template_would_print_raw_is_joined(role: str) -> None:
    template = ChatTemplate(templates.GLM4, {})
    parts = [{"type": "text", "text": text} for text in ("be brief", "be kind")]
    user = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    listed = template.render([{"role": role, "content": parts}, user])
    joined = template.render([{"role": role, "content": "be brief\nbe kind"}, user])
    assert listed == joined
    assert "'type'" not in listed
    assert parts[0] == {"type": "text", "text": "be brief"}  # the caller's is as it was


def test_a_string_that_a_template_of_parts_would_print_raw_stays_a_string() -> None:
    source = "{{ messages[0].content }}|{% for part in messages[1].content %}{{ part.text }}"
    template = ChatTemplate(source + "{% endfor %}", {})
    assert template.content_format == "parts"
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert template.render(messages) == "be brief|hi"


@pytest.mark.parametrize("role", ["user", "system", "assistant"])
def test_the_time_for_lists_of_text_grows_with_their_length_only(role: str) -> None:
    """Looking for each list in the whole prompt took 9 s for 2,000 of these."""
    template = ChatTemplate(templates.GLM4, {})
    message = {"role": role, "content": [{"type": "text", "text": "word " * 600}]}
    start = time.process_time()
    rendered = template.render([message] * 4000)
    assert rendered.count("word") == 4000 * 600
    assert time.process_time() - start < 5


def test_a_template_of_strings_leaves_images_out() -> None:
    template = ChatTemplate(templates.CHATML, {})
    content = [{"type": "image"}, {"type": "text", "text": "what?"}]
    assert "user\nwhat?<|im_end|>" in template.render([{"role": "user", "content": content}])
