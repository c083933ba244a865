"""Which versions of torch, CUDA, its driver, Python and transformers go together.

Sources: PyTorch's RELEASE.md (Python and CUDA of each release, architectures of each CUDA build;
2.12 and later as in its pull requests of 2026), NVIDIA's tables of CUDA minor version
compatibility and of the drivers that came with each toolkit (Linux), transformers' metadata.
"""

from __future__ import annotations

from dataclasses import dataclass

Version = tuple[int, ...]

HEARTH_PYTHON: Version = (3, 11)  # of pyproject.toml, as the following four
TORCH_LEAST: Version = (2, 6)
TORCH_BEYOND: Version = (3, 0)
TRANSFORMERS_LEAST: Version = (5, 0)
TRANSFORMERS_BEYOND: Version = (6, 0)
SUGGESTED_PYTHON = "3.12"


@dataclass(frozen=True, slots=True)
class TorchRelease:
    """`python`: the oldest and the newest minor version; `cuda`: wheels, that of PyPI first."""

    version: Version
    python: tuple[Version, Version]
    cuda: tuple[Version, ...]


TORCH_RELEASES = (
    TorchRelease((2, 6), ((3, 9), (3, 13)), ((12, 4), (11, 8), (12, 6))),
    TorchRelease((2, 7), ((3, 9), (3, 13)), ((12, 6), (11, 8), (12, 8))),
    TorchRelease((2, 8), ((3, 9), (3, 13)), ((12, 8), (12, 6), (12, 9))),
    TorchRelease((2, 9), ((3, 10), (3, 14)), ((12, 8), (12, 6), (13, 0))),
    TorchRelease((2, 10), ((3, 10), (3, 14)), ((12, 8), (12, 6), (13, 0))),
    TorchRelease((2, 11), ((3, 10), (3, 14)), ((13, 0), (12, 6), (12, 8))),
    TorchRelease((2, 12), ((3, 10), (3, 14)), ((13, 0), (12, 6), (13, 2))),
    TorchRelease((2, 13), ((3, 10), (3, 15)), ((13, 0), (12, 6), (13, 2))),
    TorchRelease((2, 14), ((3, 10), (3, 15)), ((13, 2), (12, 6), (13, 0))),
)

# The oldest driver of each major version of CUDA: every minor version runs on it, but for features
# of newer drivers and code that is compiled at run time from PTX.
LEAST_DRIVER: dict[int, Version] = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 65, 6)}
# From which on a toolkit runs without that restriction.
OWN_DRIVER: dict[Version, Version] = {
    (11, 8): (520, 61, 5),
    (12, 1): (530, 30, 2),
    (12, 4): (550, 54, 14),
    (12, 6): (560, 28, 3),
    (12, 8): (570, 26),
    (12, 9): (575, 51, 3),
    (13, 0): (580, 65, 6),
}

# Compute capabilities that wheels have code for, by CUDA. 12.8 lost Volta with torch 2.11 and
# everything before it earlier; Ada (8.9) runs code for 8.6.
_ARCHITECTURES: tuple[tuple[Version, Version, Version], ...] = (
    # CUDA, least capability, capability that is too new
    ((11, 8), (5, 0), (9, 1)),
    ((12, 4), (5, 0), (9, 1)),
    ((12, 6), (5, 0), (9, 1)),
    ((12, 8), (7, 0), (13, 0)),
    ((12, 9), (7, 0), (13, 0)),
    ((13, 0), (7, 5), (13, 0)),
    ((13, 2), (7, 5), (13, 0)),
)
_WITHOUT_VOLTA: Version = (2, 11)


def parse_version(text: str) -> Version | None:
    """The leading numbers: 2.8.0+cu128 is (2, 8, 0), 5.0.0rc1 is (5, 0, 0)."""
    numbers: list[int] = []
    for part in text.split("+", maxsplit=1)[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits or len(digits) > 9:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers) or None


def written(version: Version) -> str:
    """As people write it: 2.8."""
    return ".".join(str(number) for number in version)


def torch_release(version: Version) -> TorchRelease | None:
    """The release of a version; None for one that the table does not know."""
    return next((r for r in TORCH_RELEASES if r.version == version[:2]), None)


def runs_on(cuda: Version, driver: Version) -> bool | None:
    """Whether a driver serves a CUDA runtime; None for a CUDA that the table does not know."""
    least = LEAST_DRIVER.get(cuda[0])
    return None if least is None else driver >= least


def _is_served(cuda: Version, driver: Version) -> bool:
    """Whether the driver is known to serve a toolkit without restrictions."""
    own = OWN_DRIVER.get(cuda)
    return own is not None and driver >= own


def has_code_for(torch: Version, cuda: Version, capability: Version) -> bool | None:
    """Whether wheels of torch for a CUDA serve a card; None where the table does not know."""
    for known, least, beyond in _ARCHITECTURES:
        if known == cuda[:2]:
            if cuda[:2] == (12, 8) and torch >= _WITHOUT_VOLTA:
                least = (7, 5)
            return least <= capability < beyond
    return None


def find_build(
    driver: Version, capabilities: tuple[Version, ...], torch: Version | None
) -> tuple[Version, Version] | None:
    """The torch and the CUDA of wheels that a driver and cards can run.

    That of `torch` where there is one, else of the newest release that has one; before others
    those that the driver serves without restrictions.
    """
    releases = sorted(
        TORCH_RELEASES, key=lambda r: (r.version != torch, tuple(-n for n in r.version))
    )
    for release in releases:
        for _, cuda in sorted(((_is_served(c, driver), c) for c in release.cuda), reverse=True):
            if runs_on(cuda, driver) and all(
                has_code_for(release.version, cuda, capability) for capability in capabilities
            ):
                return release.version, cuda
    return None
