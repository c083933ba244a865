"""The processor: kernels that run on it, what may be used of it, how it is clocked."""

from __future__ import annotations

from hearth.host.checks.check import Check, Examined, Fix, Level, serve_fix, shown, tune_fix
from hearth.host.fast_cores import fast_kinds

AREA = "processor"
_FIRST_PORT = 8000  # the default of hearth serve
_SLOW_GOVERNORS = frozenset(("powersave", "conservative", "ondemand"))


def check_kernels(examined: Examined) -> tuple[Check, ...]:
    """Whether the C++ kernels are built, and with which instructions they run."""
    kernels = examined.facts.software.kernels
    why = "AVX2 and AVX-512 multiply 8 to 64 values at once; the generic kernels are far slower"
    if kernels.value is None:
        fixes = (
            Fix("shell", "sudo apt-get install g++ && pip install --force-reinstall hearth"),
            Fix("pip", "pip install 'hearth[torch]'"),
            Fix(
                "conda", "conda install -c conda-forge gxx && pip install --force-reinstall hearth"
            ),
        )
        wanted = "the C++ kernel library, or torch instead of it, slower"
        has_torch = examined.facts.software.torch.is_known
        level = Level.WARN if has_torch else Level.FAIL
        return (Check("kernels", AREA, level, shown(kernels), wanted, why, fixes),)
    best = kernels.value[0] if kernels.value else ""
    features = ", ".join(examined.facts.cpu.isa.value or ()) or "not told"
    level = Level.WARN if best in {"", "generic"} else Level.OK
    return (
        Check("kernels", AREA, level, f"{best or 'none'} (of: {features})", "avx2 or better", why),
    )


def check_usable_cores(examined: Examined) -> tuple[Check, ...]:
    """What the affinity mask and the cgroup's quota leave."""
    cpu = examined.facts.cpu
    quota, cores = cpu.quota_cores.value, cpu.physical_cores.value
    measured = f"{shown(cpu.usable_cores)} ({cpu.usable_cores.source})"
    level = Level.OK
    fixes: tuple[Fix, ...] = ()
    is_odd = quota is not None and quota != int(quota)
    if is_odd or (quota is not None and quota < 1):
        level = Level.WARN
        fixes = (Fix("hint", "give the container whole CPUs: docker run --cpus 4, limits.cpu: 4"),)
    wanted = f"whole cores, of {cores} physical ones" if cores else "whole cores"
    why = (
        "one thread a physical core is the fastest (hyperthreads share the vector units); a quota "
        "that is no whole number stops all threads for part of every 100 ms"
    )
    return (Check("usable cores", AREA, level, measured, wanted, why, fixes),)


def check_governor(examined: Examined) -> tuple[Check, ...]:
    """How the clock is chosen."""
    governor = examined.facts.cpu.governor
    level = Level.OK if governor.is_known else Level.UNKNOWN
    fixes: tuple[Fix, ...] = ()
    if set((governor.value or "").split(", ")) & _SLOW_GOVERNORS:
        level = Level.WARN
        fixes = (
            tune_fix("governor"),
            Fix("shell", "sudo cpupower frequency-set -g performance"),
        )
    measured = governor.value or "not told (usual in virtual machines: the host decides)"
    why = "the clock follows the load with a delay, which short steps feel; measure what it gives"
    return (Check("governor", AREA, level, measured, "performance or schedutil", why, fixes),)


def check_numa(examined: Examined) -> tuple[Check, ...]:
    """Whether memory is near."""
    nodes = examined.facts.numa.nodes
    with_cpus = [node for node in nodes.value or () if node.cpus]
    if len(with_cpus) < 2:
        return ()
    listed = "; ".join(f"node {node.number}: CPUs {node.cpus}" for node in with_cpus)
    cpus = with_cpus[0].cpus
    return (
        Check(
            "NUMA",
            AREA,
            Level.WARN,
            listed,
            "a server on each node, bound to it",
            "memory of the other node is slower: unbound over two nodes a server reached 40 % of "
            "what it gave bound to one; hearth serve takes one node by itself (--numa auto), and "
            "the others are idle until each has a server of its own",
            (
                *(
                    serve_fix(examined, _on_node(node.number, n))
                    for n, node in enumerate(with_cpus)
                ),
                Fix(
                    "shell",
                    f"numactl --cpunodebind={with_cpus[0].number} "
                    f"--membind={with_cpus[0].number} {serve_fix(examined).command}  # CPUs {cpus}",
                ),
            ),
        ),
    )


def _on_node(node: int, position: int) -> str:
    return f"--numa {node}" + (f" --port {_FIRST_PORT + position}" if position else "")


def check_core_kinds(examined: Examined) -> tuple[Check, ...]:
    """Whether slow cores hold up fast ones: not where hearth can tell them apart."""
    kinds = examined.facts.cpu.core_kinds.value or ()
    if len(kinds) < 2:
        return ()
    is_told = fast_kinds(kinds) != ()
    # Boards number their fast cores last. Not --cpu-bind, which takes each hardware thread of the
    # list for a core.
    command = f"taskset -c {kinds[-1].cpus} {serve_fix(examined).command}"
    return (
        Check(
            "core kinds",
            AREA,
            Level.OK if is_told else Level.WARN,
            "; ".join(f"{kind.name}: CPUs {kind.cpus}" for kind in kinds),
            "threads on cores of one kind: hearth serve takes the fast ones by itself"
            if is_told
            else "threads on cores of one kind; nothing here says which are faster",
            "threads meet after every operation, and a slow core keeps the fast ones waiting",
            () if is_told else (Fix("shell", command),),
        ),
    )
