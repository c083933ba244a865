"""Images in chats: where they go, how long they live, and what a bad one is answered with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from tests.unit.images.samples import GLM4V, SVG, data_url, encoded, picture, png, png_header
from tests.unit.serve import fake_engine
from tests.unit.serve.fake_engine import client_for, toy_model
from tests.unit.serve.image_model import (
    BEGIN,
    END,
    END_OF_ANSWER,
    IMAGE,
    LookingEngine,
    id_of,
    image_model,
    image_part,
    text_part,
    user,
)
from tests.unit.serve.leaving_client import LeavingClient
from tests.unit.serve.test_http_chat import events
from tests.unit.serve.test_http_errors import error_of
from tests.unit.text import templates

from hearth.core.config import MediaConfig
from hearth.core.errors import OverloadedError, RequestError
from hearth.core.images import ImageInfo, ImageInput
from hearth.core.request import Request
from hearth.engine.images.pixels import open_pixels
from hearth.serve.app import create_app
from hearth.serve.model import ServedModel

URL = "/v1/chat/completions"


@pytest.fixture
def model() -> ServedModel:
    return image_model()


@pytest.fixture
def engine(model: ServedModel) -> LookingEngine:
    return LookingEngine(model)


@pytest.fixture
async def client(engine: LookingEngine, model: ServedModel) -> AsyncIterator[httpx.AsyncClient]:
    async with client_for(engine, model) as found:
        yield found


async def ask(client: httpx.AsyncClient, *parts: dict[str, Any], **fields: Any) -> httpx.Response:
    return await client.post(URL, json={"messages": [user(*parts)], **fields})


def is_gone(image: ImageInput) -> bool:
    try:
        open_pixels(image, 14)
    except RequestError:
        return True
    return False


def text_of(engine: LookingEngine, request: Request) -> str:
    """The prompt, with each image as one token."""
    tokens, start = [], 0
    for image in request.images:
        first = image.first_token
        assert set(request.prompt[first : first + image.num_tokens]) == {request.prompt[first]}
        tokens += [*request.prompt[start:first], request.prompt[first]]
        start = first + image.num_tokens
    return engine.tokenizer.decode_all([*tokens, *request.prompt[start:]])


async def test_an_image_stands_in_the_prompt_with_all_its_tokens(
    client: httpx.AsyncClient, engine: LookingEngine
) -> None:
    data = encoded(picture(300, 200, "RGBA"))
    response = await ask(client, image_part(data), text_part("What is this?"))
    assert response.status_code == 200, response.text
    (request,) = engine.submitted
    (image,) = request.images
    assert image.num_tokens == image.grid_height * image.grid_width // 4
    assert request.prompt.count(id_of(engine.tokenizer, IMAGE)) == image.num_tokens
    around = (
        request.prompt[image.first_token - 1],
        request.prompt[image.first_token + image.num_tokens],
    )
    assert around == (id_of(engine.tokenizer, BEGIN), id_of(engine.tokenizer, END))
    assert text_of(engine, request) == (
        f"[gMASK]<sop><|user|>\n{BEGIN}{IMAGE}{END}What is this?<|assistant|>\n"
    )
    ((pixels,),) = engine.seen
    assert pixels.shape == (image.grid_height * 14, image.grid_width * 14, 3)
    assert is_gone(image)
    usage = response.json()["usage"]
    assert usage["prompt_tokens"] == len(request.prompt)
    details = {"cached_tokens": 0, "image_tokens": image.num_tokens}
    assert usage["prompt_tokens_details"] == details
    assert "warnings" not in response.json()


async def test_images_and_texts_keep_their_order_over_all_messages(
    client: httpx.AsyncClient, engine: LookingEngine
) -> None:
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    red, green, blue = (encoded(Image.new("RGB", (30, 30), color)) for color in colors)
    messages = [
        {"role": "system", "content": "be brief"},
        user(text_part("a"), image_part(red), text_part("b"), image_part(green)),
        {"role": "assistant", "content": "<think>x</think><answer>y"},
        user(image_part(blue), text_part("c"), image_part(red)),
    ]
    response = await client.post(URL, json={"messages": messages})
    assert response.status_code == 200, response.text
    (request,) = engine.submitted
    (seen,) = engine.seen
    assert [tuple(pixels[0, 0]) for pixels in seen] == [colors[0], colors[1], colors[2], colors[0]]
    firsts = [image.first_token for image in request.images]
    assert firsts == sorted(firsts)
    one = f"{BEGIN}{IMAGE}{END}"
    assert f"a{one}b{one}" in text_of(engine, request)
    assert f"{one}c{one}" in text_of(engine, request)
    assert request.images[0].digest == request.images[3].digest
    assert request.images[0].path == request.images[3].path


FORMS: list[dict[str, Any]] = [
    {"type": "image_url", "image_url": {"url": data_url(png()), "detail": "auto"}},
    {"type": "image_url", "image_url": data_url(png())},
    {"type": "input_image", "image_url": data_url(png()), "detail": "high"},
    {"type": "image", "image": data_url(png())},
    {"type": "image", "url": data_url(png())},
    {"type": "image_url", "image_url": {"url": data_url(png(), "image/jpeg"), "detail": None}},
]


@pytest.mark.parametrize("part", FORMS, ids=range(len(FORMS)))
async def test_every_form_of_a_part_is_the_same_image(
    client: httpx.AsyncClient, engine: LookingEngine, part: dict[str, Any]
) -> None:
    for one in (part, image_part()):
        response = await ask(client, one)
        assert response.status_code == 200, response.text
    first, second = engine.submitted
    assert first.prompt == second.prompt
    assert first.images[0].digest == second.images[0].digest


@pytest.mark.parametrize(
    "content", ["Hi", [text_part("Hi")], [text_part("H"), text_part("i")], [text_part("")]]
)
async def test_text_alone_is_taken_as_ever(
    client: httpx.AsyncClient, engine: LookingEngine, content: object
) -> None:
    messages = [{"role": "user", "content": content}]
    response = await client.post(URL, json={"messages": messages})
    assert response.status_code == 200, response.text
    assert engine.submitted[0].images == ()
    assert "image_tokens" not in response.json()["usage"]["prompt_tokens_details"]


async def test_low_detail_has_fewer_tokens(engine: LookingEngine) -> None:
    info = ImageInfo(GLM4V, id_of(engine.tokenizer, IMAGE), 1 << 20)
    async with client_for(engine, image_model(images=info, max_model_len=20_000)) as client:
        for detail in ("low", "high", "auto", "original"):
            data = encoded(picture(1000, 1000), "JPEG")
            assert (await ask(client, image_part(data, detail=detail))).status_code == 200
    tokens = [request.images[0].num_tokens for request in engine.submitted]
    assert tokens == [324, 1296, 1296, 1296]


def parts_with(**image_url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": image_url}


BAD: list[tuple[dict[str, Any], str]] = [
    (image_part(png()[:400]), "the PNG image is damaged or cut off"),
    (image_part(png_header(60_000, 60_000)), "permitted: 89,478,485"),
    (image_part(png_header(0, 0)), "names no size"),
    (image_part(png(1, 5000)), "1×5,000 pixels: one side is more than 200 times the other"),
    (image_part(SVG), "an SVG drawing (permitted: PNG, JPEG, WebP, GIF, BMP)"),
    (image_part(b"plain text"), "text that begins with 'plain text'"),
    (parts_with(url="data:image/png;base64,not base64"), "' ' is character 4"),
    (parts_with(url="data:image/png;base64,"), "no data behind its comma"),
    (parts_with(url="data:image/svg+xml,<svg/>"), "not marked as base64"),
    (parts_with(url=""), "the URL is empty"),
    (parts_with(url="screenshot.png"), "begins with 'screenshot.png'"),
    (parts_with(url="https://example.com/x.png"), "not fetched by this server"),
    (parts_with(url="file:///etc/passwd"), "not permitted by this server"),
    (parts_with(), "has nothing"),
    (parts_with(url=5), "has a number"),
    ({"type": "image_url"}, "has nothing"),
    ({"type": "image_url", "image_url": 5}, "has a number"),
    ({"type": "image_url", "image_url": []}, "has a list"),
    ({"type": "image_url", "image_url": {"url": {"url": "x"}}}, "another type"),
]


@pytest.mark.parametrize(("part", "said"), BAD, ids=lambda value: str(value)[-40:])
async def test_a_bad_image_is_a_400_with_its_place(
    client: httpx.AsyncClient, engine: LookingEngine, part: dict[str, Any], said: str
) -> None:
    messages = [
        {"role": "system", "content": "x"},
        user(text_part("look"), image_part(), part),
    ]
    error = error_of(await client.post(URL, json={"messages": messages}))
    assert error["param"] == "messages.1.content.2.image_url"
    assert error["message"].startswith("messages.1.content.2.image_url: ")
    assert said in error["message"]
    assert len(error["message"]) < 600
    assert engine.submitted == []
    assert (await ask(client, image_part())).status_code == 200  # nothing has broken


async def test_an_unknown_detail_is_refused(client: httpx.AsyncClient) -> None:
    error = error_of(await ask(client, image_part(detail="huge")))
    assert error["param"] == "messages.0.content.0.image_url.detail"
    assert "permitted: auto, low, high, original" in error["message"]


async def test_a_body_of_fifty_megabytes_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post(URL, content=b"x" * (50 << 20))
    assert error_of(response, 413)["code"] == "body_too_large"


@pytest.mark.parametrize("limit", [0, 2])
async def test_more_images_than_allowed_are_refused(
    engine: LookingEngine, model: ServedModel, limit: int
) -> None:
    app = create_app(engine, model, media=MediaConfig(limit_images=limit))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for count in range(limit + 1):
            assert (await ask(client, text_part("x"), *[image_part()] * count)).status_code == 200
        error = error_of(await ask(client, *[image_part()] * (limit + 1)))
    assert f"images in the messages: {limit + 1} (permitted: {limit})" in error["message"]
    assert error["param"] == f"messages.0.content.{limit}.image_url"
    assert "--limit-images" in error["message"]


@pytest.mark.parametrize("part", [image_part(), {"type": "image_url"}, {"type": "image"}])
async def test_a_model_of_text_says_that_it_takes_no_images(part: dict[str, Any]) -> None:
    model = toy_model()
    engine = LookingEngine(model)
    async with client_for(engine, model) as client:
        error = error_of(await ask(client, text_part("x"), part))
        assert error["param"] == "messages.0.content.1"
        assert "this model takes no images" in error["message"]
        body = {"messages": [user(part)]}
        assert "takes no images" in error_of(await client.post("/tokenize", json=body))["message"]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            [text_part(f"what is {IMAGE}?")],
            "the image token <|image|> stands 1 times in the messages, with no image",
        ),
        (
            [image_part(), text_part(IMAGE * 2)],
            "stands 3 times in the messages, with 1 image (permitted: once for each image)",
        ),
    ],
)
async def test_an_image_token_that_a_user_writes_is_refused(
    client: httpx.AsyncClient, engine: LookingEngine, parts: list[dict[str, Any]], said: str
) -> None:
    error = error_of(await ask(client, *parts))
    assert said in error["message"]
    assert f"take {IMAGE} out of the texts" in error["message"]
    assert engine.submitted == []


async def test_an_image_token_in_a_plain_prompt_is_refused(
    client: httpx.AsyncClient, engine: LookingEngine
) -> None:
    for prompt in (f"x{IMAGE}y", [5, id_of(engine.tokenizer, IMAGE)]):
        response = await client.post("/v1/completions", json={"prompt": prompt})
        assert error_of(response)["param"] == "prompt"
    assert (await client.post("/v1/completions", json={"prompt": "x"})).status_code == 200


@pytest.mark.parametrize("role", ["system", "assistant"])
async def test_an_image_that_the_template_leaves_out_is_told(
    client: httpx.AsyncClient, engine: LookingEngine, role: str
) -> None:
    messages = [{"role": role, "content": [image_part()]}, user(text_part("x"), image_part())]
    error = error_of(await client.post(URL, json={"messages": messages}))
    assert "the model's chat template writes 1 image of the 2 in the messages" in error["message"]
    assert error["param"] == "messages"
    assert engine.submitted == []


async def test_a_template_without_images_is_told() -> None:
    model = image_model(templates.CHATML)
    async with client_for(LookingEngine(model), model) as client:
        error = error_of(await ask(client, text_part("x"), image_part()))
        assert "writes no image of the 1" in error["message"]


async def test_a_prompt_with_images_is_not_truncated(client: httpx.AsyncClient) -> None:
    error = error_of(await ask(client, image_part(), truncate_prompt_tokens=50))
    assert error["param"] == "truncate_prompt_tokens"
    response = await ask(client, text_part("a b c d e f"), truncate_prompt_tokens=5)
    assert response.status_code == 200


async def test_the_context_counts_image_tokens_and_says_so(engine: LookingEngine) -> None:
    async with client_for(engine, image_model(max_model_len=60)) as client:
        error = error_of(await ask(client, image_part(png(500, 500)), text_part("x")))
    assert error["code"] == "context_length_exceeded"
    assert "(64 of them for images), but the context (max_model_len) is 60" in error["message"]
    assert "smaller images have fewer tokens" in error["message"]


async def test_tokenize_counts_what_images_take(
    client: httpx.AsyncClient, engine: LookingEngine
) -> None:
    messages = [user(image_part(), text_part("x"))]
    await client.post(URL, json={"messages": messages})
    body = (await client.post("/tokenize", json={"messages": messages})).json()
    assert body["tokens"] == list(engine.submitted[0].prompt)
    error = error_of(await client.post("/tokenize", json={"messages": [user(image_part(SVG))]}))
    assert "SVG" in error["message"]


@pytest.mark.parametrize("stream", [True, False])
async def test_images_live_until_the_last_choice_has_ended(
    client: httpx.AsyncClient, engine: LookingEngine, stream: bool
) -> None:
    response = await ask(client, image_part(), n=3, stream=stream)
    assert response.status_code == 200
    assert len(engine.seen) == 3  # each was looked at with its last event
    images = [request.images for request in engine.submitted]
    assert images[0] == images[1] == images[2]
    assert is_gone(images[0][0])
    if stream:
        assert len(events(response)) > 3


async def test_images_go_when_nobody_takes_the_request(
    client: httpx.AsyncClient, engine: LookingEngine
) -> None:
    engine.submit_error = RequestError("no")
    submitted: list[Request] = []
    plain = engine.submit

    def submit(request: Request) -> Any:
        submitted.append(request)
        return plain(request)

    engine.submit = submit  # type: ignore[method-assign]  # the test's own
    error_of(await ask(client, image_part()))
    assert is_gone(submitted[0].images[0])
    engine.submit_error = OverloadedError("full")
    error_of(await ask(client, text_part("x"), {"type": "image_url", "image_url": "x"}), 429)


@pytest.mark.parametrize("stream", [True, False])
async def test_images_go_with_a_client_that_goes_away(
    engine: LookingEngine, model: ServedModel, stream: bool
) -> None:
    engine.stall_after = 1
    body = {"messages": [user(image_part())], "stream": stream}
    leaving = LeavingClient(create_app(engine, model), body)
    await leaving.submitted(engine)
    (image,) = engine.submitted[0].images
    assert not is_gone(image)
    await leaving.leave()
    assert is_gone(image)
    assert engine.num_running == 0


async def test_an_engine_that_fails_leaves_no_pixels(
    client: httpx.AsyncClient, engine: LookingEngine
) -> None:
    engine.fail_after = 1
    error_of(await ask(client, image_part()), 503)
    assert is_gone(engine.submitted[0].images[0])


@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_not_quite_as_it_was_said_is_a_warning(
    client: httpx.AsyncClient, stream: bool
) -> None:
    part = {"type": "image_url", "image_url": data_url(png(), "image/webp")}
    response = await ask(client, text_part("x"), part, stream=stream)
    body = events(response)[0] if stream else response.json()
    (warning,) = body["warnings"]
    assert warning["code"] == "image_read"
    assert warning["param"] == "messages.0.content.1.image_url"
    assert "declared as image/webp and is image/png" in warning["message"]


async def test_local_files_are_read_where_the_server_allows_it(
    engine: LookingEngine, model: ServedModel, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png())
    app = create_app(engine, model, media=MediaConfig(allowed_local_path=str(tmp_path)))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await ask(client, parts_with(url=f"file://{tmp_path}/a.png"))).status_code == 200
        error = error_of(await ask(client, parts_with(url=f"file://{tmp_path}/../a.png")))
    assert "does not lie below" in error["message"]
    assert engine.seen[0][0].shape[2] == 3


@pytest.mark.parametrize("stream", [True, False])
async def test_the_end_of_an_answer_is_left_out_and_its_beginning_kept(
    client: httpx.AsyncClient,
    engine: LookingEngine,
    stream: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The model's own stop token ends the answer; tags before it belong to the content.
    end = id_of(engine.tokenizer, END_OF_ANSWER)
    monkeypatch.setattr(fake_engine, "EOS", end)
    engine.answer = '<think>tap it</think><answer>do(action="Tap", element=[1, 2])'
    response = await ask(client, image_part(), text_part("open it"), stream=stream)
    if stream:
        chunks = [c["choices"][0]["delta"].get("content", "") for c in events(response)]
        content = "".join(chunks)
    else:
        content = response.json()["choices"][0]["message"]["content"]
    assert content == engine.answer
    assert end in engine.submitted[0].stop_token_ids


VALUES: list[Any] = [
    None,
    True,
    0,
    -1.5,
    "",
    "x",
    "data:",
    "data:,",
    "data:;base64,",
    "data:image/png;base64,=",
    "data:image/png;base64,====",
    "file:",
    "file:///",
    "file://\x00",
    "http:",
    "https://[",
    "http://\ud7ff",
    "\n",
    "🙂" * 100,
    [],
    ["x"],
    {},
    {"url": None},
    {"url": ["x"]},
    {"url": "x", "detail": []},
    {"url": "x", "detail": {}},
    {"detail": "low"},
]


@pytest.mark.parametrize("kind", ["image_url", "input_image", "image", "IMAGE_URL", "video_url"])
async def test_no_part_leads_to_another_answer_than_a_400(
    engine: LookingEngine, model: ServedModel, kind: str
) -> None:
    media = MediaConfig(allowed_local_path="/dev", allowed_media_domains=("*",))
    app = create_app(engine, model, media=media)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for field in ("image_url", "image", "url", "detail", "text", "uuid"):
            for value in VALUES:
                error = error_of(await ask(client, {"type": kind, field: value}))
                assert error["param"].startswith("messages.0.content.0")
                assert len(error["message"]) < 700
    assert engine.submitted == []
