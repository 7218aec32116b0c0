"""`python -m flowfuse.ops`: what the operators run on, and whether they compute what they should.

Every example of every operator, forward and backward, on every device present, against its
reference in float64 on the CPU. The exit code is 1 where one is off, or where a GPU has no kernels.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from flowfuse import ops
from flowfuse.ops.examples import Example
from flowfuse.ops.extension import kernels_on

SIZE = (2, 13, 37)  # batch, height and width that no kernel's blocks divide
# Relative to the largest value: float32 sums of up to a few hundred terms; gradients in bfloat16
# are rounded to it.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2**-6}


def examples() -> Iterator[tuple[str, Example]]:
    for name, make in ops.EXAMPLES.items():
        yield name, make(torch.float32, SIZE)
        if name.startswith("correlation"):  # products of bfloat16 have instructions of their own
            yield f"{name}, bfloat16", make(torch.bfloat16, SIZE)


def expected(example: Example) -> list[Tensor]:
    with kernels_on():  # on no device
        return example.double().run()


def deviation(found: Sequence[Tensor], wanted: Sequence[Tensor], rounding: float) -> float:
    """Largest difference over the largest value and the tolerance; infinite where NaN differ."""
    worst = 0.0
    for ours, theirs in zip(found, wanted, strict=True):
        values, reference = ours.detach().cpu().double(), theirs.double()
        if not torch.equal(values.isfinite(), reference.isfinite()):
            return float("inf")
        if not reference.numel():
            continue
        scale = reference.nan_to_num(0, 0, 0).abs().max().clamp(min=1e-30)
        error = (values - reference).nan_to_num(0, 0, 0).abs().max() / scale
        worst = max(worst, float(error) / rounding / TOLERANCE.get(ours.dtype, 1e-4))
    return worst


def main() -> int:
    info = ops.build_info()
    for key, value in info.items():
        print(f"{key:20} {', '.join(value) if isinstance(value, tuple) else value}")
    devices = ["cpu"]
    for index in range(torch.cuda.device_count()):
        devices.append(f"cuda:{index}")
        name, (major, minor) = (
            torch.cuda.get_device_name(index),
            torch.cuda.get_device_capability(index),
        )
        print(f"{devices[-1]:20} {name}, compute capability {major}.{minor}")
    if len(devices) == 1:
        print("cuda                 no GPU: nothing is tested there")
    print(f"\n{'example':34}{'device':10}{'forward':>12}{'backward':>12}  error / tolerance")
    failed = 0
    for name, example in examples():
        wanted = expected(example)
        results = len(wanted) - len(example.leaves)
        for device in devices:
            try:
                found = example.on(device).run()
            except RuntimeError as error:  # a GPU without kernels, say: the next may have them
                failed += 1
                print(f"{name:34}{device:10}FAILED: {error}")
                if "CUDA error" in str(error):  # mostly nothing runs there after it in this process
                    print(f"{failed} FAILED; {device} may be lost: what comes after is not tested")
                    return 1
                continue
            parts = (slice(None, results), slice(results, None))
            errors = [deviation(found[p], wanted[p], example.rounding) for p in parts]
            good = max(errors) <= 1
            failed += not good
            backward = f"{errors[1]:12.1e}" if example.leaves else f"{'-':>12}"
            verdict = "ok" if good else "WRONG"
            if torch.device(device).type not in info["devices"]:
                verdict += ", but no kernel: this is the reference"
                failed += device != "cpu"  # a GPU is there, and nothing of flowfuse runs on it
            print(f"{name:34}{device:10}{errors[0]:12.1e}{backward}  {verdict}")
    print(f"{failed} FAILED" if failed else "every operator agrees with its reference")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
