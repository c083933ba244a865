"""Run as a process: compiles sampling for several cards; a line of JSON for each kernel."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import torch
from tests.support import triton_ahead

from hearth.kernels.triton import sampling_kernels
from hearth.kernels.triton.plan_buffer import SamplingTensors

META = torch.device("meta")
triton_ahead._TYPES[torch.float64] = "*fp64"


def main() -> None:
    how = SamplingTensors(
        *(
            torch.empty(
                8,
                dtype=torch.float32 if name in {"temperature", "top_p", "min_p"} else torch.int32,
                device=META,
            )
            for name in SamplingTensors.__dataclass_fields__
        )
    )
    logits = torch.empty(8, 151_552, device=META)

    def launch() -> None:
        sampling_kernels.sample_without_sort(logits, how)

    for capability in map(int, sys.argv[1:]):
        kernels = triton_ahead.compiled(launch, capability)
        for kernel in kernels:
            print(json.dumps({"capability": capability, **asdict(kernel)}), flush=True)


if __name__ == "__main__":
    main()
