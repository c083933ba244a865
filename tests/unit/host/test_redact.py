"""What leaves the machine in a support archive tells neither who nor where."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.host.checks.hosts import examined
from tests.unit.host.facts.fake_nvml import FakeNvml

from hearth.host.checks.registry import examine
from hearth.host.redact import Identity, redact, redact_environment, redact_text

PUBLIC = {"root", "user", "localhost", "ubuntu", "debian", "admin", "host", "server"}
MARKS = {"token", "login", "secret", "server", "host"}
ME = Identity("jane", "/home/jane", "workhorse.example.org")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/jane/models/x", "~/models/x"),
        ("/home/janet/models", "/home/<user>/models"),
        ("/mnt/c/Users/Jane Doe/.wslconfig", "/mnt/c/Users/<user>/.wslconfig"),
        ("C:\\Users\\Jane Mary Doe\\x", "C:\\Users\\<user>\\x"),
        ("/Users/tom and /etc", "/Users/<user> and /etc"),
        ("started by jane on workhorse", "started by <user> on <host>"),
        ("WORKHORSE.example.org", "<host>"),
        ("janet stays", "janet stays"),
        ("nas.example.org:/export/models", "<server>:/export/models"),
        ("//server/share", "//<server>/share"),
        ("/m: nfs4 from nas.intern:/export", "/m: nfs4 from <server>:/export"),
        ("/m: cifs from //nas.intern/share", "/m: cifs from //<server>/share"),
        ("/m: fuse.sshfs from tom@nas:/x", "/m: fuse.sshfs from <server>:/x"),
        ("/sys//x and a // b", "/sys//x and a // b"),
        ("192.168.1.17:8000", "<ip>:8000"),
        ("fe80::1ff:fe23:4567:890a and ::1", "<ip> and <ip>"),
        ("2001:db8:0:0:0:0:2:1", "<ip>"),
        ("00:1b:44:11:3a:b7", "<mac>"),
        ("hf_abcdefghijklmnop", "<token>"),
        ("Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx.abc", "Bearer <token>"),
        ("Authorization: Bearer abcdef123456", "Authorization: Bearer <token>"),
        ("https://jane:pw@host.example/x", "https://<login>@host.example/x"),
        ("amqp://u:p/w@d:5@mq.example/x", "amqp://<login>@mq.example/x"),
        ("https://tom@host.example/x", "https://<login>@host.example/x"),
        ("https://h.example/x?token=abc&n=1", "https://h.example/x?token=<secret>&n=1"),
        ("https://h.example/?X-Amz-Signature=ab/c", "https://h.example/?X-Amz-Signature=<secret>"),
        ("python serve.py --api-key abc --port 1", "python serve.py --api-key <secret> --port 1"),
        ("x --hf-token=abc", "x --hf-token=<secret>"),
        ('{"api_key": "abc", "n": 1}', '{"api_key": "<secret>", "n": 1}'),
        ("MY_PASSWORD=abc", "MY_PASSWORD=<secret>"),
        ("ghs_abcdefghijkl ASIAABCDEFGHIJKLMNOP nvapi-abcdefgh1", "<token> <token> <token>"),
        ("--max-num-batched-tokens 8192", "--max-num-batched-tokens 8192"),
        ("a token reads all weights; tokens: 12", "a token reads all weights; tokens: 12"),
        ("12.5 tokens/s, a context of 8,192 tokens", "12.5 tokens/s, a context of 8,192 tokens"),
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
    assert redact_text("vm.swappiness", Identity("", "/", "vm")) == "vm.swappiness"


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
        "HEARTH_SIGNING_KEYS": "abc",
        "HEARTH_BROKER_PASS": "abc",
        "HEARTH_HOST": "box.intern",
        "HF_HOME": "/data/hf",
        "HEARTH_BROKER": "amqp://u:p/w@mq.intern:5672/x",
    }
    assert redact_environment(variables, ME) == {
        "HEARTH_API_KEY": "<secret>",
        "HF_TOKEN": "<secret>",
        "HF_ENDPOINT": "https://<host>/x",
        "HEARTH_MODEL": "~/m",
        "HEARTH_SIGNING_KEYS": "<secret>",
        "HEARTH_BROKER_PASS": "<secret>",
        "HEARTH_HOST": "<host>",
        "HF_HOME": "/data/hf",
        "HEARTH_BROKER": "amqp://<host>:5672/x",
    }


@given(st.text(), st.text(max_size=8), st.text(max_size=8))
def test_any_text_and_any_names_are_redacted_without_an_error(text: str, a: str, b: str) -> None:
    found = redact_text(f"{text} {a} {text}", Identity(a, b, a + b))
    # A name that stands alone and is no mark's own word is gone, whatever it is made of.
    if len(a) > 3 and a.isascii() and a.isalnum() and a.lower() not in {*PUBLIC, *MARKS}:
        alone = rf"(?<![A-Za-z0-9]){a}(?![A-Za-z0-9])"
        assert not re.search(alone, found, re.IGNORECASE)
    assert redact_text("", Identity(a, b, a + b)) == ""


def test_who_called_sudo_is_nobody_either() -> None:
    root = Identity("root", "/root", "box", ("jane",))
    assert redact_text("/data/jane/models on box", root) == "/data/<user>/models on <host>"


def test_what_the_doctor_says_of_itself_stays_readable(tmp_path: Path) -> None:
    report = examine(examined(tmp_path, nvml=FakeNvml()))
    for check in report.checks:
        for text in (check.name, check.wanted, check.why, *(fix.command for fix in check.fixes)):
            assert redact_text(text, Identity("", "/", "")) == text


@given(st.text(alphabet="ab /.:-", max_size=30))
def test_the_users_name_never_stays_as_a_word(text: str) -> None:
    found = redact_text(f"{text} jane {text}", ME)
    assert "jane" not in found
