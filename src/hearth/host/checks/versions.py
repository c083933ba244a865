"""Whether the installed versions go together, and the commands that bring those that do.

torch and transformers are an extra: serving on the processor needs neither, so that their absence
is fine unless the model needs them. The rules' numbers are in `version_tables`.
"""

from __future__ import annotations

from dataclasses import dataclass

from hearth.host.checks import version_tables as table
from hearth.host.checks.check import Check, Examined, Fix, Level
from hearth.host.checks.version_tables import Version, parse_version, written
from hearth.host.facts.software import CPU_BUILD

AREA = "versions"
_WITHOUT = "not installed: serving on the processor does without"


@dataclass(frozen=True, slots=True)
class VersionSet:
    """The versions as they are written; None where there is none. `cards`: such as 9.0."""

    python: str
    torch: str | None = None
    torch_cuda: str | None = None  # CPU_BUILD for a build without
    driver: str | None = None
    transformers: str | None = None
    cards: tuple[str, ...] = ()
    needs_torch: bool = False  # the model is served through transformers, or kernels are missing


def version_set(examined: Examined) -> VersionSet:
    """That of the host."""
    software, gpu = examined.facts.software, examined.facts.gpu
    needs = examined.needs
    cards = (card.compute_capability.value for card in gpu.gpus.value or ())
    return VersionSet(
        python=software.python.value or "",
        torch=software.torch.value,
        torch_cuda=software.torch_cuda.value,
        driver=gpu.driver.value or software.driver.value,
        transformers=software.transformers.value,
        cards=tuple(card for card in cards if card),
        needs_torch=(needs is not None and needs.needs_transformers)
        or not software.kernels.is_known,
    )


def check_versions(examined: Examined) -> tuple[Check, ...]:
    """All version checks."""
    return judge_versions(version_set(examined))


def judge_versions(found: VersionSet) -> tuple[Check, ...]:
    """The matrix, applied to one set."""
    return (_python(found), _torch(found), *_cuda(found), *_cards(found), _transformers(found))


def _python(found: VersionSet) -> Check:
    version = parse_version(found.python) or ()
    torch = parse_version(found.torch or "")
    release = table.torch_release(torch) if torch else None
    least, newest = table.HEARTH_PYTHON, None
    if release is not None:
        least, newest = max(least, release.python[0]), release.python[1]
    is_fine = version[:2] >= least and (newest is None or version[:2] <= newest)
    wanted = f"{written(least)} or newer"
    if newest is not None:
        wanted = f"{written(least)} to {written(newest)}, for torch {found.torch}"
    level = Level.OK if is_fine else Level.FAIL
    fixes = (
        Fix(
            "pip",
            f"python{table.SUGGESTED_PYTHON} -m venv .venv && "
            ".venv/bin/pip install hearth" + ("'[torch]'" if found.torch else ""),
        ),
        Fix("conda", f"conda create -n hearth -c conda-forge python={table.SUGGESTED_PYTHON}"),
    )
    why = "wheels are built for some versions of Python; on others pip compiles, or finds nothing"
    return Check("Python", AREA, level, found.python, wanted, why, () if is_fine else fixes)


def _torch(found: VersionSet) -> Check:
    wanted = f"none, or {written(table.TORCH_LEAST)} or newer, before {written(table.TORCH_BEYOND)}"
    why = "torch is for models without a family file, and for hosts without the C++ kernels"
    if found.torch is None:
        level = Level.FAIL if found.needs_torch else Level.OK
        measured = "not installed, and needed here" if found.needs_torch else _WITHOUT
        fixes = _install_torch(found) if found.needs_torch else ()
        return Check("torch", AREA, level, measured, wanted, why, fixes)
    version = parse_version(found.torch)
    if version is None:
        return Check("torch", AREA, Level.UNKNOWN, found.torch, wanted, why)
    is_fine = table.TORCH_LEAST <= version[:2] < table.TORCH_BEYOND
    if is_fine:
        return Check("torch", AREA, Level.OK, found.torch, wanted, why)
    level = Level.FAIL if found.needs_torch else Level.WARN
    return Check("torch", AREA, level, found.torch, wanted, why, _install_torch(found))


def _install_torch(found: VersionSet) -> tuple[Fix, ...]:
    """For the driver and the cards that are there; else the build for the processor."""
    driver = parse_version(found.driver or "")
    if driver is not None:
        torch = parse_version(found.torch or "") or ()
        build = table.find_build(driver, _capabilities(found), torch[:2])
        if build is not None:
            return _install_build(*build)
    return (
        Fix(
            "pip",
            "pip install 'hearth[torch]' --extra-index-url https://download.pytorch.org/whl/cpu",
        ),
        Fix("conda", "conda install -c conda-forge 'pytorch-cpu>=2.6,<3' 'transformers>=5,<6'"),
    )


def _install_build(torch: Version, cuda: Version) -> tuple[Fix, ...]:
    index = f"https://download.pytorch.org/whl/cu{cuda[0]}{cuda[1]}"
    return (
        Fix("pip", f"pip install 'torch=={written(torch)}.*' --index-url {index}"),
        Fix(
            "conda",
            f"conda install -c conda-forge 'pytorch-gpu={written(torch)}' "
            f"'cuda-version={written(cuda)}'",
        ),
    )


def _cuda(found: VersionSet) -> tuple[Check, ...]:
    """The runtime that torch was built for, against the driver."""
    if found.torch is None:
        return ()
    name, driver = "CUDA runtime", parse_version(found.driver or "")
    why = "a driver serves runtimes up to its own major version of CUDA, and all older ones"
    if found.torch_cuda == CPU_BUILD:
        measured, wanted = "torch is built without CUDA", "CUDA where there is a GPU"
        if not found.cards and driver is None:
            return (Check(name, AREA, Level.OK, measured, wanted, why),)
        return (Check(name, AREA, Level.WARN, measured, wanted, why, _install_torch(found)),)
    cuda = parse_version(found.torch_cuda or "")
    if cuda is None:
        return (Check(name, AREA, Level.UNKNOWN, "not told by torch", "a CUDA version", why),)
    if driver is None:
        measured = f"{written(cuda)}, and no driver is to be seen"
        wanted = "a driver where there is a GPU; without one torch runs on the processor"
        return (Check(name, AREA, Level.OK, measured, wanted, why),)
    return (_runtime(found, cuda, driver, why),)


def _runtime(found: VersionSet, cuda: Version, driver: Version, why: str) -> Check:
    measured = f"CUDA {written(cuda)} in torch {found.torch}, driver {found.driver}"
    least, own = table.LEAST_DRIVER.get(cuda[0]), table.OWN_DRIVER.get(cuda[:2])
    if least is None:
        return Check("CUDA runtime", AREA, Level.UNKNOWN, measured, "a newer table", why)
    wanted = f"driver {least[0]} or newer for CUDA {cuda[0]}.x"
    upgrade = Fix("shell", f"sudo apt-get install nvidia-driver-{least[0]}  # then: sudo reboot")
    if driver < least:
        torch = parse_version(found.torch or "")
        build = table.find_build(driver, _capabilities(found), torch and torch[:2])
        fixes = (*(_install_build(*build) if build else ()), upgrade)
        return Check("CUDA runtime", AREA, Level.FAIL, measured, wanted, why, fixes)
    if own is not None and driver < own:
        limited = (
            f"runs by minor version compatibility (the toolkit came with driver {own[0]}): kernels "
            "that are compiled at run time from PTX, and features of newer drivers, do not work"
        )
        fix = Fix("shell", f"sudo apt-get install nvidia-driver-{own[0]}  # then: sudo reboot")
        return Check("CUDA runtime", AREA, Level.WARN, measured, wanted, limited, (fix,))
    return Check("CUDA runtime", AREA, Level.OK, measured, wanted, why)


def _capabilities(found: VersionSet) -> tuple[Version, ...]:
    versions = (parse_version(card) for card in found.cards)
    return tuple(version for version in versions if version is not None)


def _cards(found: VersionSet) -> tuple[Check, ...]:
    """Whether torch's wheels have code for the cards."""
    torch, cuda = parse_version(found.torch or ""), parse_version(found.torch_cuda or "")
    if torch is None or cuda is None or not found.cards:
        return ()
    answers = [table.has_code_for(torch[:2], cuda, card) for card in _capabilities(found)]
    level = Level.FAIL if False in answers else Level.UNKNOWN if None in answers else Level.OK
    fixes: tuple[Fix, ...] = ()
    if level is Level.FAIL:
        driver = parse_version(found.driver or "") or (9999,)
        build = table.find_build(driver, _capabilities(found), torch[:2])
        fixes = _install_build(*build) if build else ()
    return (
        Check(
            "GPU architecture",
            AREA,
            level,
            f"compute capability {', '.join(sorted(set(found.cards)))}, torch {found.torch} for "
            f"CUDA {written(cuda)}",
            "a build with code for the cards",
            "wheels for CUDA 13 leave out what is older than Turing (7.5), those before 12.8 do "
            "not know Blackwell: there torch finds no kernel image",
            fixes,
        ),
    )


def _transformers(found: VersionSet) -> Check:
    least, beyond = table.TRANSFORMERS_LEAST, table.TRANSFORMERS_BEYOND
    wanted = f"none, or {written(least)} or newer, before {written(beyond)}"
    why = "configurations as transformers 5 writes them, such as Glm4v's, are not read by 4"
    fixes = (
        Fix("pip", f"pip install 'transformers>={least[0]},<{beyond[0]}'"),
        Fix("conda", f"conda install -c conda-forge 'transformers>={least[0]},<{beyond[0]}'"),
    )
    if found.transformers is None:
        level = Level.FAIL if found.needs_torch else Level.OK
        measured = "not installed, and needed here" if found.needs_torch else _WITHOUT
        return Check(
            "transformers", AREA, level, measured, wanted, why, fixes if found.needs_torch else ()
        )
    version = parse_version(found.transformers)
    if version is None:
        return Check("transformers", AREA, Level.UNKNOWN, found.transformers, wanted, why)
    if least <= version[:2] < beyond:
        return Check("transformers", AREA, Level.OK, found.transformers, wanted, why)
    level = Level.FAIL if found.needs_torch else Level.WARN
    return Check("transformers", AREA, level, found.transformers, wanted, why, fixes)
