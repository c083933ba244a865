"""Whether the model fits: the plan's verdict, beside the figures that guides customarily name."""

from __future__ import annotations

from dataclasses import dataclass

from hearth.core.units import GIB, format_bytes, format_count
from hearth.host.checks.check import Check, Examined, Fix, Level, serve_fix, shown
from hearth.host.checks.needs import ModelNeeds, SchemeNeed

AREA = "capacity"
_NAMED = 9e9  # parameters of the model that the customary figures are for


@dataclass(frozen=True, slots=True)
class _Floor:
    """Customary figures for a model of 9 billion parameters."""

    minimum: int
    recommended: int

    def scaled(self, needs: ModelNeeds | None, least: float) -> tuple[float, float]:
        share = 1.0 if needs is None else needs.num_parameters / _NAMED
        return max(least, self.minimum * share), max(least, self.recommended * share)


_GPU_GB = _Floor(16, 24)
_CORES = _Floor(8, 16)
_MEMORY_GB = _Floor(32, 64)


def check_plan(examined: Examined) -> tuple[Check, ...]:
    """The verdict: does the model fit into this host's memory?"""
    needs = examined.needs
    if needs is None:
        return ()
    why = "weights, KV cache and buffers must fit into memory at once; what swaps cannot be served"
    available = shown(examined.facts.memory.available_bytes, format_bytes)
    if not needs.schemes:
        level = Level.FAIL if needs.refusal else Level.UNKNOWN
        wanted = needs.refusal or (
            f"{needs.architecture} is served through transformers; that is planned at its start"
        )
        fixes = (Fix("hint", needs.refusal_hint),) if needs.refusal_hint else ()
        return (Check("plan", AREA, level, f"{available} available", wanted, why, fixes),)
    exact = needs.schemes[0]
    fitting = next((scheme for scheme in needs.schemes if scheme.fits), None)
    wanted = "; ".join(_need(scheme) for scheme in needs.schemes)
    measured = f"{available} available"
    if fitting is exact:
        return (Check("plan", AREA, Level.OK, measured, wanted, why),)
    if fitting is not None:
        fix = serve_fix(examined, f"--quantize {fitting.scheme}")
        because = f"fits as {fitting.scheme} only, which rounds the weights: {why}"
        return (Check("plan", AREA, Level.WARN, measured, wanted, because, (fix,)),)
    smallest = needs.schemes[-1]
    fixes = (Fix("hint", smallest.hint),) if smallest.hint else ()
    return (Check("plan", AREA, Level.FAIL, measured, wanted, smallest.message or why, fixes),)


def _need(scheme: SchemeNeed) -> str:
    name = "as stored" if scheme.scheme == "none" else scheme.scheme
    tokens = format_count(scheme.num_tokens)
    return f"{name} {format_bytes(scheme.needed_bytes)} (context {tokens})"


def check_customary(examined: Examined) -> tuple[Check, ...]:
    """Figures of deployment guides, scaled by the number of parameters; they decide nothing."""
    return (_memory_floor(examined), _cores_floor(examined), _gpu_floor(examined))


def _memory_floor(examined: Examined) -> Check:
    total = examined.facts.memory.total_bytes
    minimum, recommended = _MEMORY_GB.scaled(examined.needs, 1)
    return Check(
        "memory size",
        AREA,
        _informative(examined.needs, total.is_known),
        shown(total, format_bytes),
        _customary(minimum, recommended, "GB", examined.needs),
        "a rule of thumb; the plan counts the bytes and gives the verdict",
    )


def _gpu_floor(examined: Examined) -> Check:
    facts = examined.facts.gpu.gpus
    sizes = [gpu.total_bytes.value or 0 for gpu in facts.value or ()]
    minimum, recommended = _GPU_GB.scaled(examined.needs, 1)
    measured = (
        ", ".join(format_bytes(size) for size in sizes) or f"none seen: {facts.why or 'none'}"
    )
    return Check(
        "GPU memory size",
        AREA,
        _informative(examined.needs, True),
        measured,
        _customary(minimum, recommended, "GB", examined.needs),
        "a rule of thumb; no GPU is needed: hearth's own kernels serve on the processor",
    )


def _cores_floor(examined: Examined) -> Check:
    cores = examined.facts.cpu.usable_cores
    minimum, recommended = _CORES.scaled(examined.needs, 1)
    level = _informative(examined.needs, cores.is_known)
    few = examined.needs is not None and (cores.value or 0) < int(minimum)
    return Check(
        "cores",
        AREA,
        Level.WARN if few else level,
        shown(cores),
        _customary(minimum, recommended, "cores", examined.needs),
        "prompts are computed by the cores: with fewer of them the first token comes later; "
        "decoding is bound by memory bandwidth instead",
        (Fix("hint", "serve a smaller model, or give the container more CPUs"),) if few else (),
    )


def _informative(needs: ModelNeeds | None, is_known: bool) -> Level:
    """A rule of thumb is no verdict: without a model it says nothing, with one the plan does."""
    return Level.OK if needs is not None and is_known else Level.UNKNOWN


def _customary(minimum: float, recommended: float, unit: str, needs: ModelNeeds | None) -> str:
    size = "a 9B model" if needs is None else f"{needs.num_parameters / 1e9:.2g}B parameters"
    name = "" if needs is not None else "; name a model for a verdict: hearth doctor MODEL"
    return f"customary for {size}: {minimum:.0f} / {recommended:.0f} {unit}{name}"


def check_disk_space(examined: Examined) -> tuple[Check, ...]:
    """Room for a download, and for the packed weights of a model."""
    storage, cache, needs = examined.facts.storage, examined.weight_cache, examined.needs
    weights = needs.schemes[0].weight_bytes if needs is not None and needs.schemes else None
    level, wanted = Level.UNKNOWN, "name a model for a verdict: hearth doctor MODEL"
    measured = f"{shown(storage.free_bytes, format_bytes)} free at {storage.directory}"
    fixes: tuple[Fix, ...] = ()
    if weights is not None and cache is not None:
        enough = cache.most_bytes >= weights
        level = Level.OK if enough else Level.WARN
        wanted = f"{format_bytes(weights)}, the size of the weights, for packed copies of them"
        measured += f"; at most {format_bytes(cache.most_bytes)} for packed weights in "
        measured += cache.directory
        space = serve_fix(examined, f"--weight-cache-bytes {weights}")
        fixes = () if enough else (Fix("hint", "free space, or --weight-cache-dir DIR"), space)
    return (
        Check(
            "disk space",
            AREA,
            level,
            measured,
            wanted,
            "packed weights on disk make the next start quick; without room it packs again",
            fixes,
        ),
    )


def check_wsl(examined: Examined) -> tuple[Check, ...]:
    """WSL gives Linux a part of the host's memory."""
    wsl = examined.facts.platform.wsl
    if wsl is None:
        return ()
    total = examined.facts.memory.total_bytes
    cap = wsl.memory_cap_bytes
    is_small = total.value is not None and total.value < 16 * GIB
    cap_fix = Fix("hint", "in %UserProfile%\\.wslconfig: [wsl2] memory=24GB; then: wsl --shutdown")
    fix = (
        Fix("shell", 'wsl.exe --set-version "$WSL_DISTRO_NAME" 2') if wsl.version == 1 else cap_fix
    )
    return (
        Check(
            "WSL memory cap",
            AREA,
            Level.FAIL if wsl.version == 1 else Level.WARN if is_small else Level.OK,
            f"WSL {wsl.version}, {shown(total, format_bytes)} for Linux; "
            f"cap: {shown(cap, format_bytes)}",
            "WSL 2 with a cap above what the plan needs",
            "WSL 2 takes half of the host's memory unless told otherwise, and files below /mnt/c "
            "are read over 9p, many times slower: keep models inside Linux",
            (fix,) if is_small or wsl.version == 1 else (),
        ),
    )
