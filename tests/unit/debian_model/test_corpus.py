"""How documentation becomes the texts of the Debian model: prose, no repeats, nothing leaks."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from tools.debian_model.corpus import Corpus, is_english, is_test, make
from tools.debian_model.extract import MAX_LISTING_LINES, html_blocks, man_blocks, text_blocks
from tools.debian_model.packages import Package, fetch, read_packages

from hearth.core.errors import HearthError

PROSE = "The name of the file is the first of the words that it reads from the list number {}."
# One is held out, the other is not: the rule is a fixed hash of the name.
HELD_OUT = next(
    f"guide/usr/share/doc/{i}.html" for i in range(500) if is_test(f"guide/usr/share/doc/{i}.html")
)
TRAINED = next(
    f"guide/usr/share/doc/{i}.html"
    for i in range(500)
    if not is_test(f"guide/usr/share/doc/{i}.html")
)


def paragraphs(first: int, count: int = 20) -> list[str]:
    return [PROSE.format(first + i) for i in range(count)]


def page(blocks: list[str]) -> str:
    body = "".join(f"<p>{one}</p>" for one in blocks)
    return f"<html><head><title>T</title></head><body><nav>Home</nav>{body}</body></html>"


def test_html_keeps_prose_in_order_and_drops_navigation_scripts_and_long_listings() -> None:
    listing = "<br>".join(["x = 1"] * (MAX_LISTING_LINES + 1))
    text = f"""<html><head><title>Gone</title><style>p {{}}</style></head><body>
    <div class="sphinxsidebar"><ul><li>Gone<li>Gone too</ul></div>
    <h1>Files &amp; places<a class="headerlink" href="#x">¶</a></h1>
    <p>One <em>two</em>
       three.</p><script>gone()</script><pre>$ ls\n  -l</pre>
    <pre>{listing}</pre><ul><li>First<li>Second</ul><p>Last &lt;b&gt;</body></html>"""
    assert html_blocks(text) == [
        "Files & places",
        "One two three.",
        "$ ls\n  -l",
        "First",
        "Second",
        "Last <b>",
    ]


def test_what_is_skipped_ends_with_its_own_end_whatever_is_left_open_in_it() -> None:
    assert html_blocks("<nav><ul><li>gone<li>gone</ul></nav><p>kept</p>") == ["kept"]
    assert html_blocks("<div><nav><img src=x><br>gone</nav>kept</div>") == ["kept"]


def test_manual_pages_lose_macros_fonts_and_tables() -> None:
    text = """.\\" a comment
.TH LS 1
.SH NAME
ls \\- list \\fIdirectory\\fR contents
.SH DESCRIPTION
.PP
With
.BR \\-\\-all ,
it lists \\(aqdot\\(aq files.
.TS
gone
.TE
.nf
gone()
.fi
Back\\&.
"""
    assert man_blocks(text) == [
        "NAME",
        "ls - list directory contents",
        "DESCRIPTION",
        "With --all, it lists 'dot' files.",
        "Back.",
    ]


def test_info_files_lose_nodes_and_menus() -> None:
    menu = "* Menu:\n\n* A::  x\n* B::  y\n\n----\n\n"
    text = f"\x1f\nFile: a.info,  Node: Top\n\nOne\ntwo.\n\n{menu}Last."
    assert text_blocks(text) == ["One two.", "Last."]


def test_a_paragraph_that_was_trained_on_is_not_in_the_test_and_the_other_way_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared, own = paragraphs(0, 15), paragraphs(100)
    found = [(TRAINED, [*shared, *paragraphs(50)]), (HELD_OUT, [*shared, *own])]
    monkeypatch.setattr("tools.debian_model.corpus.documents", lambda _package: iter(found))
    corpus = Corpus()
    counts = corpus.add(Package("guide", "1", "", Path()))
    assert counts.documents == 2
    assert len(corpus.train) == len(corpus.test) == 1
    assert not {*corpus.train[0].split("\n\n")} & {*corpus.test[0].split("\n\n")}
    assert counts.repeated_chars == sum(map(len, shared))
    assert own[3] in corpus.test[0]
    assert paragraphs(50)[3] in corpus.train[0]


def test_about_one_document_in_forty_is_held_out() -> None:
    held_out = sum(is_test(f"package/{i}") for i in range(20_000))
    assert held_out == pytest.approx(500, abs=75)


def test_what_calibrates_is_a_part_of_what_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(f"guide/{i}.html", paragraphs(100 * i)) for i in range(300)]
    monkeypatch.setattr("tools.debian_model.corpus.documents", lambda _package: iter(found))
    corpus = Corpus()
    corpus.add(Package("guide", "1", "", Path()))
    assert 0 < len(corpus.calibration) < 20
    assert {*corpus.calibration} < {*corpus.train}
    assert not {*corpus.calibration} & {*corpus.test}


def test_other_languages_are_told_by_their_words() -> None:
    assert is_english(" ".join(paragraphs(0)))
    assert not is_english("Der Name der Datei ist das erste Wort in einer Liste von Namen. " * 20)
    assert not is_english("")


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb")
def test_packages_become_two_texts_and_a_manifest_that_are_the_same_again(tmp_path: Path) -> None:
    build_package(tmp_path / "work" / "packages")
    texts = []
    for _ in range(2):
        make(tmp_path / "work", ["guide"])
        texts.append([(tmp_path / "work" / n).read_bytes() for n in ("train.txt", "test.txt")])
    assert texts[0] == texts[1]
    train, test = (one.decode() for one in texts[0])
    assert PROSE.format(0) in train
    assert PROSE.format(200) in test
    assert "Verzeichnis" not in train + test
    assert train.endswith("\n<|endoftext|>\n")
    manifest = json.loads((tmp_path / "work" / "manifest.json").read_text())
    assert manifest["packages"][0]["version"] == "1.0-2"
    assert manifest["texts"]["test.txt"]["documents"] == 1


def build_package(directory: Path) -> None:
    root = directory.parent / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: guide\nVersion: 1.0-2\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: x\n"
    )
    doc = root / "usr" / "share" / "doc"
    doc.mkdir(parents=True)
    (doc / Path(TRAINED).name).write_text(page(paragraphs(0)))
    (doc / Path(HELD_OUT).name).write_text(page(paragraphs(200)))
    (doc / "german.html").write_text(page(["Das Verzeichnis der Namen ist lang."] * 40))
    (doc / "changelog.gz").write_bytes(gzip.compress(b"gone"))
    directory.mkdir()
    command = ["dpkg-deb", "--build", str(root), str(directory / "guide_1.0-2_all.deb")]
    subprocess.run(command, check=True, capture_output=True)


def test_two_files_of_one_package_are_an_error_that_names_it(tmp_path: Path) -> None:
    for version in ("1", "2"):
        (tmp_path / f"guide_{version}_all.deb").touch()
    with pytest.raises(HearthError, match="2 files of guide"):
        fetch(tmp_path, ["guide"])


def test_the_list_of_packages_has_none_twice() -> None:
    listed = read_packages()
    assert len(listed) > 40
    assert sorted(set(listed)) == listed
