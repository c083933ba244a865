"""The matrix of versions, on sets that work and on broken ones."""

from __future__ import annotations

import pytest
from tests.unit.host.checks.hosts import commands, found

from hearth.host.checks.check import Level, worst
from hearth.host.checks.version_tables import (
    TORCH_RELEASES,
    find_build,
    has_code_for,
    parse_version,
)
from hearth.host.checks.versions import VersionSet, judge_versions

GOOD = VersionSet(
    python="3.12.4",
    torch="2.8.0+cu128",
    torch_cuda="12.8",
    driver="570.86.15",
    transformers="5.2.0",
    cards=("9.0",),
    needs_torch=True,
)


@pytest.mark.parametrize(
    "versions",
    [
        GOOD,
        VersionSet("3.11.7"),
        VersionSet("3.13.0", "2.13.0+cpu", "none", None, "5.23.0", needs_torch=True),
        VersionSet("3.12.0", "2.11.0", "13.0", "580.95.05", "5.9.0", ("12.0",), True),
        VersionSet("3.12.0", "2.9.1+cu126", "12.6", "560.35.03", "5.0.0rc1", ("7.0",), True),
        VersionSet("3.12.0", "2.8.0", "12.8", None, "5.0.0"),  # no GPU: the processor runs it
    ],
)
def test_sets_that_work(versions: VersionSet) -> None:
    checks = judge_versions(versions)
    assert worst(checks) is Level.OK
    assert not any(check.fixes for check in checks)


# name, set, the check that fails, its level, what the pip and the conda command must say
BROKEN = [
    (
        "a driver for CUDA 11 under torch for CUDA 12",
        VersionSet("3.12.0", "2.7.1+cu126", "12.6", "470.82.01", "5.2.0", ("8.0",), True),
        ("CUDA runtime", Level.FAIL),
        ("'torch==2.7.*' --index-url https://download.pytorch.org/whl/cu118", "cuda-version=11.8"),
    ),
    (
        "torch for CUDA 13 over a driver for CUDA 12",
        VersionSet("3.12.0", "2.11.0", "13.0", "570.86.15", "5.2.0", ("9.0",), True),
        ("CUDA runtime", Level.FAIL),
        ("'torch==2.11.*' --index-url https://download.pytorch.org/whl/cu128", "cuda-version=12.8"),
    ),
    (
        "a driver older than the toolkit of the same major version",
        VersionSet("3.12.0", "2.8.0+cu128", "12.8", "535.183.01", "5.2.0", ("9.0",), True),
        ("CUDA runtime", Level.WARN),
        ("nvidia-driver-570", "nvidia-driver-570"),
    ),
    (
        "a torch that is too old for hearth",
        VersionSet("3.12.0", "2.5.1+cu124", "12.4", "570.86.15", "5.2.0", ("9.0",), True),
        ("torch", Level.FAIL),
        ("'torch==2.14.*' --index-url https://download.pytorch.org/whl/cu126", "pytorch-gpu=2.14"),
    ),
    (
        "transformers 4 under a model that needs 5",
        VersionSet("3.12.0", "2.8.0+cpu", "none", None, "4.57.1", needs_torch=True),
        ("transformers", Level.FAIL),
        ("pip install 'transformers>=5,<6'", "conda install -c conda-forge 'transformers>=5,<6'"),
    ),
    (
        "a Python that torch has no wheels for",
        VersionSet("3.14.0", "2.8.0+cu128", "12.8", "570.86.15", "5.2.0", ("9.0",), True),
        ("Python", Level.FAIL),
        ("python3.12 -m venv", "conda create -n hearth -c conda-forge python=3.12"),
    ),
    (
        "a Python that is too old for hearth",
        VersionSet("3.10.12"),
        ("Python", Level.FAIL),
        ("python3.12 -m venv", "python=3.12"),
    ),
    (
        "torch without CUDA on a host with a GPU",
        VersionSet("3.12.0", "2.8.0+cpu", "none", "570.86.15", "5.2.0", ("9.0",), True),
        ("CUDA runtime", Level.WARN),
        ("whl/cu128", "cuda-version=12.8"),
    ),
    (
        "Volta under wheels for CUDA 13",
        VersionSet("3.12.0", "2.11.0", "13.0", "580.95.05", "5.2.0", ("7.0",), True),
        ("GPU architecture", Level.FAIL),
        ("'torch==2.11.*' --index-url https://download.pytorch.org/whl/cu126", "cuda-version=12.6"),
    ),
    (
        "Blackwell under wheels for CUDA 12.6",
        VersionSet("3.12.0", "2.8.0+cu126", "12.6", "580.95.05", "5.2.0", ("12.0",), True),
        ("GPU architecture", Level.FAIL),
        ("'torch==2.8.*' --index-url https://download.pytorch.org/whl/cu129", "cuda-version=12.9"),
    ),
    (
        "no torch where the model needs it",
        VersionSet("3.12.0", transformers="5.2.0", needs_torch=True),
        ("torch", Level.FAIL),
        ("pip install 'hearth[torch]'", "pytorch-cpu"),
    ),
    (
        "no transformers where the model needs it",
        VersionSet("3.12.0", "2.8.0+cpu", "none", needs_torch=True),
        ("transformers", Level.FAIL),
        ("pip install 'transformers", "conda install"),
    ),
    (
        "transformers of a major version that does not exist yet",
        VersionSet("3.12.0", "2.8.0+cpu", "none", None, "6.0.0"),
        ("transformers", Level.WARN),
        ("'transformers>=5,<6'", "'transformers>=5,<6'"),
    ),
]


@pytest.mark.parametrize(
    ("versions", "expected", "fixes"),
    [case[1:] for case in BROKEN],
    ids=[case[0].replace(" ", "-") for case in BROKEN],
)
def test_broken_sets(
    versions: VersionSet, expected: tuple[str, Level], fixes: tuple[str, str]
) -> None:
    name, level = expected
    checks = judge_versions(versions)
    check = found(checks, name)
    assert check.level is level
    assert worst(checks) is level
    for wanted in fixes:
        assert wanted in commands(check)


def test_what_the_tables_do_not_know_is_unknown_and_not_broken() -> None:
    newer = VersionSet("3.12.0", "2.99.0", "19.0", "999.0", "5.2.0", ("19.0",), True)
    checks = judge_versions(newer)
    assert found(checks, "CUDA runtime").level is Level.UNKNOWN
    assert found(checks, "GPU architecture").level is Level.UNKNOWN
    assert found(checks, "torch").level is Level.OK
    odd = judge_versions(VersionSet("3.12.0", "local", None, "x", "main", ("?",), True))
    assert found(odd, "torch").level is Level.UNKNOWN
    assert found(odd, "transformers").level is Level.UNKNOWN


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("2.8.0+cu128", (2, 8, 0)),
        ("5.0.0rc1", (5, 0, 0)),
        ("2.9.0a0+git1", (2, 9, 0)),
        ("570.86.15", (570, 86, 15)),
        ("", None),
        ("main", None),
        ("9" * 5000, None),
    ],
)
def test_versions_as_they_are_written(text: str, version: tuple[int, ...] | None) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize("driver", [(450, 80, 2), (525, 60, 13), (570, 26), (580, 65, 6)])
@pytest.mark.parametrize("card", [(7, 0), (8, 6), (9, 0), (12, 0)])
def test_a_build_that_is_suggested_works(driver: tuple[int, ...], card: tuple[int, int]) -> None:
    build = find_build(driver, (card,), None)
    if build is None:
        assert card == (12, 0)
        assert driver < (525,)  # Blackwell needs CUDA 12.8 at least
        return
    torch, cuda = build
    assert cuda in next(r.cuda for r in TORCH_RELEASES if r.version == torch)
    assert has_code_for(torch, cuda, card)
    suggested = VersionSet(
        "3.12.0",
        ".".join(map(str, torch)),
        ".".join(map(str, cuda)),
        ".".join(map(str, driver)),
        "5.2.0",
        (f"{card[0]}.{card[1]}",),
        True,
    )
    assert worst(judge_versions(suggested)) in {Level.OK, Level.WARN}  # WARN: minor versions
