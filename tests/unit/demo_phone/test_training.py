"""How the phone agent is trained: its text, its labels, and that the training pass is the model."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tools.demo_model import TEXT_MODEL_DIR
from tools.demo_model.phone_batches import BatchMaker, PhoneBatch
from tools.demo_model.phone_model import embed, new_model, text_pass, vision_pass
from tools.demo_model.phone_steps import (
    Example,
    draw_episode,
    examples_of,
    prompt_text,
    question_example,
    step_examples,
)
from tools.demo_model.phone_tokenizer import END_OF_ANSWER, IMAGE, extended_tokenizer, names
from tools.demo_model.tokenizer import IGNORED_LABEL, token_id

from hearth.demo_phone.messages import PastStep, step_messages
from hearth.demo_phone.parser import parse_action, split_reply

TEMPLATE = Path(__file__).parents[3] / "tools" / "demo_model" / "data" / "phone_chat_template.jinja"


@pytest.fixture(scope="module")
def maker() -> BatchMaker:
    return BatchMaker(extended_tokenizer(TEXT_MODEL_DIR))


def first_batch(maker: BatchMaker, question_share: float) -> PhoneBatch:
    maker.question_share = question_share
    return next(maker.endless(1, 2))


def test_the_text_models_tokens_keep_their_ids_and_names_are_single_tokens() -> None:
    tokenizer = extended_tokenizer(TEXT_MODEL_DIR)
    assert tokenizer.encode("Hello 12").ids == [
        one for one in tokenizer.encode("Hello 12").ids if one < 3072
    ]
    for name in names():
        assert len(tokenizer.encode(name).ids) == 1, name
    ids = tokenizer.encode(f"a{END_OF_ANSWER}b").ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab"
    text = '<think>Tap Wi-Fi。</think><answer>do(action="Tap", element=[50, 7])'
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=True) == text


def test_the_last_answer_of_a_step_is_an_action_and_has_the_labels(maker: BatchMaker) -> None:
    rng = random.Random(2)
    tokenizer = extended_tokenizer(TEXT_MODEL_DIR)
    for example in [one for _ in range(10) for one in step_examples(rng)]:
        ids, labels, _ = maker.encode(example, 15, 7)
        assert ids.count(maker.image) == 105
        labelled = [one for one in labels if one != IGNORED_LABEL]
        answer = tokenizer.decode(labelled, skip_special_tokens=False)
        assert answer.endswith(END_OF_ANSWER)
        parse_action(split_reply(answer.removesuffix(END_OF_ANSWER)).action)
        assert example.text.endswith(answer)


def test_every_answer_about_a_screen_has_labels(maker: BatchMaker) -> None:
    example: Example = question_example(random.Random(3))
    _, labels, _ = maker.encode(example, 15, 7)
    end = token_id(extended_tokenizer(TEXT_MODEL_DIR), END_OF_ANSWER)
    assert labels.count(end) == example.text.count(END_OF_ANSWER) > 1


def test_an_astray_tap_stays_in_the_history_as_it_was_made() -> None:
    rng = random.Random(5)
    for _ in range(20):
        examples = examples_of(draw_episode(rng), rng, astray_share=1.0)
        for one in examples:
            assert one.text.count(IMAGE) == 1


def test_the_chat_template_gives_the_text_of_training() -> None:
    from jinja2 import Environment

    past = [PastStep("Open Camera\n\n{}", "<think>a</think><answer>", 'do(action="Home")')]
    template = Environment(autoescape=False).from_string(TEMPLATE.read_text(encoding="utf-8"))
    messages = step_messages("en", past, "text", b"png")
    rendered = template.render(messages=messages, add_generation_prompt=True)
    assert rendered == prompt_text("en", past, "text")


@pytest.mark.parametrize("question_share", [0.0, 1.0])
def test_the_training_pass_is_what_transformers_computes(
    maker: BatchMaker, question_share: float
) -> None:
    model = new_model(extended_tokenizer(TEXT_MODEL_DIR), TEXT_MODEL_DIR).train(False)
    batch = first_batch(maker, question_share)
    num = len(batch.ids)
    frames = batch.patches.view(-1, 3, 1, 14, 14).expand(-1, 3, 2, 14, 14).reshape(-1, 1176)
    grid = torch.tensor([[1, 2 * batch.rows, 2 * batch.columns]] * num)
    is_image = (batch.ids == model.config.image_token_id).int()
    with torch.no_grad():
        features = vision_pass(model, batch.patches, batch.rows, batch.columns)
        hidden = text_pass(model, embed(model, batch.ids, features), batch.positions)
        found = model.lm_head(hidden)
        wanted = model(
            input_ids=batch.ids,
            pixel_values=frames,
            image_grid_thw=grid,
            mm_token_type_ids=is_image,
        ).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)
