"""What leaves the machine in a support archive tells neither who nor where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.host.redact import Identity, redact, redact_environment, redact_text

ME = Identity("jane", "/home/jane", "workhorse.example.org")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/jane/models/x", "~/models/x"),
        ("/home/janet/models", "/home/<user>/models"),
        ("/mnt/c/Users/Jane Doe/.wslconfig", "/mnt/c/Users/<user> Doe/.wslconfig"),
        ("started by jane on workhorse", "started by <user> on <host>"),
        ("WORKHORSE.example.org", "<host>"),
        ("janet stays", "janet stays"),
        ("nas.example.org:/export/models", "<server>:/export/models"),
        ("//server/share", "//<server>/share"),
        ("192.168.1.17:8000", "<ip>:8000"),
        ("fe80::1ff:fe23:4567:890a and ::1", "<ip> and <ip>"),
        ("2001:db8:0:0:0:0:2:1", "<ip>"),
        ("00:1b:44:11:3a:b7", "<mac>"),
        ("hf_abcdefghijklmnop", "<token>"),
        ("Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx.abc", "Bearer <token>"),
        ("https://jane:pw@host.example/x", "https://<login>@host.example/x"),
        ("driver 570.86.15, 12.8, 10:30:59", "driver 570.86.15, 12.8, 10:30:59"),
    ],
)
def test_texts(text: str, expected: str) -> None:
    assert redact_text(text, ME) == expected


def test_names_of_every_system_stay() -> None:
    assert redact_text("/root/x on localhost", Identity("root", "/root", "localhost")) == (
        "~/x on localhost"
    )
    assert redact_text("/x", Identity("", "/", "")) == "/x"


def test_nested_data_keeps_its_shape() -> None:
    value = {"a": ["/home/jane", 1, None, True], "jane": {"b": ("jane",)}}
    assert redact(value, ME) == {"a": ["~", 1, None, True], "jane": {"b": ["<user>"]}}


def test_of_the_environment_only_what_concerns_serving_and_no_secret() -> None:
    variables = {
        "HEARTH_API_KEY": "plain",
        "HF_TOKEN": "short",
        "HF_ENDPOINT": "https://mirror.intern.example/x",
        "HEARTH_MODEL": "/home/jane/m",
        "AWS_SECRET": "s",
        "PATH": "/home/jane/bin",
    }
    assert redact_environment(variables, ME) == {
        "HEARTH_API_KEY": "<secret>",
        "HF_TOKEN": "<secret>",
        "HF_ENDPOINT": "https://<host>/x",
        "HEARTH_MODEL": "~/m",
    }


@given(st.text(), st.text(max_size=8), st.text(max_size=8))
def test_any_text_and_any_names_are_redacted_without_an_error(text: str, a: str, b: str) -> None:
    redact_text(text, Identity(a, b, a + b))


@given(st.text(alphabet="ab /.:-", max_size=30))
def test_the_users_name_never_stays_as_a_word(text: str) -> None:
    found = redact_text(f"{text} jane {text}", ME)
    assert "jane" not in found
