"""Names of ARM's cores, and the instruction sets that matter to inference.

The numbers are those of the MIDR register, as Linux writes them (arch/arm64/include/asm/cputype.h).
"""

from __future__ import annotations

_VENDORS = {
    "0x41": "ARM",
    "0x42": "Broadcom",
    "0x43": "Cavium",
    "0x46": "Fujitsu",
    "0x48": "HiSilicon",
    "0x4e": "NVIDIA",
    "0x50": "Applied Micro",
    "0x51": "Qualcomm",
    "0x53": "Samsung",
    "0x61": "Apple",
    "0xc0": "Ampere",
}
_ARM_CORES = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd44": "Cortex-X1",
    "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710",
    "0xd48": "Cortex-X2",
    "0xd49": "Neoverse-N2",
    "0xd4d": "Cortex-A715",
    "0xd4e": "Cortex-X3",
    "0xd4f": "Neoverse-V2",
    "0xd80": "Cortex-A520",
    "0xd81": "Cortex-A720",
    "0xd82": "Cortex-X4",
    "0xd84": "Neoverse-V3",
    "0xd8e": "Neoverse-N3",
}

# In the order in which they are shown.
_RELEVANT = (
    # x86
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx_vnni_int8", "avx512f", "avx512bw"),
    *("avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx10"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    # ARM
    *("neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "svei8mm", "svebf16", "sve2"),
    *("sme", "sme2"),
    # POWER
    *("altivec", "vsx", "mma"),
)


def arm_vendor(name: str) -> str:
    """The maker of an implementer's number; other names as they are."""
    return _VENDORS.get(name.lower(), name)


def arm_core(implementer: str, part: str) -> str:
    """The name of a core, such as Cortex-A76; its numbers where it is not known."""
    if implementer.lower() in {"0x41", ""} and part.lower() in _ARM_CORES:
        return _ARM_CORES[part.lower()]
    return f"{arm_vendor(implementer)} core {part}".strip()


def relevant_features(flags: str) -> tuple[str, ...]:
    """Those of a processor's flags that decide which kernels run, in a fixed order."""
    there = set(flags.lower().replace(",", " ").split())
    return tuple(name for name in _RELEVANT if name in there)
