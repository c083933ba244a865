"""Hosts laid out as files: what /proc and /sys of other machines look like."""

from __future__ import annotations

import os
from pathlib import Path

CPUS = "sys/devices/system/cpu"
NODES = "sys/devices/system/node"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def topology(siblings: dict[int, str], package: dict[int, int] | None = None) -> dict[str, str]:
    """Which hardware threads share a core, and which socket each belongs to."""
    files = {f"{CPUS}/online": _listed(siblings)}
    for cpu, text in siblings.items():
        files[f"{CPUS}/cpu{cpu}/topology/core_cpus_list"] = f"{text}\n"
        socket = (package or {}).get(cpu, 0)
        files[f"{CPUS}/cpu{cpu}/topology/physical_package_id"] = f"{socket}\n"
    return files


def _listed(cpus: dict[int, str]) -> str:
    return ",".join(str(cpu) for cpu in cpus) + "\n"


def two_socket_server() -> dict[str, str]:
    """Two sockets of four cores with two threads each; a NUMA node a socket."""
    siblings = {cpu: f"{cpu % 8},{cpu % 8 + 8}" for cpu in range(16)}
    package = {cpu: cpu % 8 // 4 for cpu in range(16)}
    flags = "fpu sse4_2 fma avx avx2 f16c avx512f avx512bw avx512vl avx512_vnni amx_tile amx_int8"
    files = topology(siblings, package)
    files["proc/cpuinfo"] = "".join(
        f"processor\t: {cpu}\nvendor_id\t: GenuineIntel\n"
        f"model name\t: Intel(R) Xeon(R) Platinum 8480+\nflags\t\t: {flags}\n\n"
        for cpu in siblings
    )
    for cpu, shared in siblings.items():
        base = f"{CPUS}/cpu{cpu}/cache"
        files |= {
            f"{base}/index0/level": "1\n",
            f"{base}/index0/type": "Data\n",
            f"{base}/index0/size": "48K\n",
            f"{base}/index0/shared_cpu_list": shared + "\n",
            f"{base}/index3/level": "3\n",
            f"{base}/index3/type": "Unified\n",
            f"{base}/index3/size": "107520K\n",
            f"{base}/index3/shared_cpu_list": ("0-3,8-11" if package[cpu] == 0 else "4-7,12-15"),
            f"{CPUS}/cpu{cpu}/cpufreq/scaling_governor": "powersave\n",
        }
    for node, cpus in enumerate(("0-3,8-11", "4-7,12-15")):
        files |= {
            f"{NODES}/node{node}/cpulist": f"{cpus}\n",
            f"{NODES}/node{node}/distance": ("10 21\n" if node == 0 else "21 10\n"),
            f"{NODES}/node{node}/meminfo": (
                f"Node {node} MemTotal:       263921234 kB\n"
                f"Node {node} MemFree:        25000{node} kB\n"
            ),
        }
    return files


def smt8_power() -> dict[str, str]:
    """Two cores of eight threads each, and a node without CPUs, as on a POWER9 with GPUs."""
    siblings = {cpu: ("0-7" if cpu < 8 else "8-15") for cpu in range(16)}
    return topology(siblings) | {
        "proc/cpuinfo": "".join(
            f"processor\t: {cpu}\ncpu\t\t: POWER9, altivec supported\nclock\t\t: 3800.000000MHz\n\n"
            for cpu in siblings
        )
        + "timebase\t: 512000000\nplatform\t: PowerNV\n",
        f"{NODES}/node0/cpulist": "0-15\n",
        f"{NODES}/node0/distance": "10 80\n",
        f"{NODES}/node0/meminfo": "Node 0 MemTotal: 1000 kB\nNode 0 MemFree: 10 kB\n",
        f"{NODES}/node252/cpulist": "\n",
        f"{NODES}/node252/distance": "80 10\n",
        f"{NODES}/node252/meminfo": "Node 252 MemTotal: 500 kB\nNode 252 MemFree: 500 kB\n",
    }


def hybrid_laptop() -> dict[str, str]:
    """Two performance cores with two threads each and four efficiency cores."""
    siblings = {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3", **{cpu: str(cpu) for cpu in range(4, 8)}}
    return topology(siblings) | {
        "proc/cpuinfo": "processor\t: 0\nvendor_id\t: GenuineIntel\n"
        "model name\t: 12th Gen Intel(R) Core(TM) i5-1240P\n"
        "flags\t\t: fpu sse4_2 avx avx2 fma f16c avx_vnni\n",
        "sys/devices/cpu_core/cpus": "0-3\n",
        "sys/devices/cpu_atom/cpus": "4-7\n",
    }


def arm_board() -> dict[str, str]:
    """A board with four small and four large cores; cpuinfo has numbers alone."""
    parts = {cpu: ("0xd05" if cpu < 4 else "0xd0b") for cpu in range(8)}
    files = topology({cpu: str(cpu) for cpu in parts}, dict.fromkeys(parts, -1))
    files["proc/cpuinfo"] = "".join(
        f"processor\t: {cpu}\nBogoMIPS\t: 48.00\n"
        "Features\t: fp asimd evtstrm aes pmull fphp asimdhp cpuid asimddp\n"
        f"CPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {part}\n\n"
        for cpu, part in parts.items()
    )
    files["proc/device-tree/model"] = "Radxa ROCK 5B\0"
    for cpu in parts:
        files[f"{CPUS}/cpu{cpu}/cpu_capacity"] = "414\n" if cpu < 4 else "1024\n"
    return files


def container_v2() -> dict[str, str]:
    """A container with its own cgroup namespace: 1.5 CPUs and 4 GiB."""
    return topology({cpu: str(cpu) for cpu in range(8)}) | {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/memory.max": f"{4 << 30}\n",
        "sys/fs/cgroup/memory.current": f"{1 << 30}\n",
        "proc/meminfo": "MemTotal: 65000000 kB\nMemAvailable: 60000000 kB\nSwapTotal: 0 kB\n",
        "run/.containerenv": "engine=podman\n",
    }


def container_v1() -> dict[str, str]:
    """A pod on an older node."""
    group = "kubepods/burstable/pod1/abc"
    return topology({cpu: str(cpu) for cpu in range(8)}) | {
        "proc/self/cgroup": f"4:cpu,cpuacct:/{group}\n3:memory:/{group}\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{8 << 30}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{2 << 30}\n",
        "proc/meminfo": "MemTotal: 65000000 kB\nMemAvailable: 60000000 kB\n",
    }


def wsl2() -> dict[str, str]:
    return {
        "proc/sys/kernel/osrelease": "5.15.167.4-microsoft-standard-WSL2\n",
        "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 24.04.1 LTS"\n',
        "mnt/c/Users/Public/desktop.ini": "",
        "mnt/c/Users/someone/.wslconfig": "[wsl2]\r\nmemory=8GB # of 32\r\nprocessors=4\r\n",
    }


def block_device(root: Path, name: str, number: str, owner: str = "", **files: str) -> None:
    """A device below /sys/devices, with the links that Linux makes; `owner`: a partition's disk.

    Names of `files` have two underscores for a slash.
    """
    where = root / "sys/devices/pci0/block" / owner / name
    write(where, {"dev": f"{number}\n", "size": "2048\n"})
    if owner:
        write(where, {"partition": "1\n"})
    write(where, {key.replace("__", "/"): f"{text}\n" for key, text in files.items()})
    link = root / "sys/class/block" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(where, link.parent))


def slaves(root: Path, name: str, *parents: str) -> None:
    """What a device lies on."""
    folder = root / "sys/class/block" / name / "slaves"
    folder.mkdir()
    for parent in parents:
        (folder / parent).symlink_to(os.path.relpath(root / "sys/class/block" / parent, folder))


def mounts(*lines: str) -> dict[str, str]:
    """Lines of mountinfo: `254:0 /models ext4 /dev/dm-0`."""
    text, files = "", {}
    for number, line in enumerate(lines, start=20):
        device, point, kind, source = line.split(" ")
        text += f"{number} 1 {device} / {point} rw,relatime shared:1 - {kind} {source} rw\n"
        files[f".{point}/.exists"] = ""
    return {**files, "proc/self/mountinfo": text}
