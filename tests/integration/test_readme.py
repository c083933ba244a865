"""The README's examples are run as they stand, against the served built-in model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.server import Server

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README.zh-CN.md")


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def at(server: Server, block: str) -> str:
    assert "http://127.0.0.1:8000" in block
    return block.replace("http://127.0.0.1:8000", server.url)


@pytest.mark.parametrize("name", READMES)
def test_the_curl_example_gives_a_sensible_answer(server: Server, name: str) -> None:
    (block,) = (block for block in blocks(name, "sh") if block.startswith("curl"))
    result = subprocess.run(
        ["/bin/sh", "-c", at(server, block)], capture_output=True, text=True, check=True
    )
    answer = json.loads(result.stdout)["choices"][0]["message"]["content"]
    assert "OpenAI" in answer


@pytest.mark.parametrize("name", READMES)
def test_the_python_example_gives_a_sensible_answer(server: Server, name: str) -> None:
    (block,) = blocks(name, "python")
    result = subprocess.run(
        [sys.executable, "-c", at(server, block)], capture_output=True, text=True, check=True
    )
    assert "OpenAI" in result.stdout


def test_both_readmes_have_the_same_sections_flags_and_links() -> None:
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in READMES)
    for pattern in (r"^#+ ", r"^\| `(--[a-z-]+)`", r"\]\((?!README)([^)]+)\)", r"^make \w+"):
        assert re.findall(pattern, english, re.MULTILINE) == re.findall(
            pattern, chinese, re.MULTILINE
        )


@pytest.mark.parametrize("name", READMES)
def test_every_link_leads_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        assert (ROOT / path).exists(), link
        assert not anchor or anchor in anchors(ROOT / path), link


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(
        re.findall(r"^make (\w+)", "\n".join(blocks("README.md", "sh")), re.MULTILINE)
    ):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
