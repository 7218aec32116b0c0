"""Check that two checkouts of flowfuse compute the same bits on this machine.

    git worktree add ../before HEAD~20 && (cd ../before && make setup)
    python benchmarks/same_bits.py ../before . [--python ../before/.venv/bin/python]

Each checkout runs the shipped sample through ``flowfuse.infer``, three steps of training on
generated scenes, and every operator forward and backward, all on one thread. What they write is
hashed and compared. Only public names are used, so the two checkouts may differ inside.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TRAINING = (
    "--model nano --data scenes:fast=1,slow=1 --scenes 6 --scene-size 96 96 --crop 64 64 "
    "--batch 2 --steps 3 --validate-every 3 --validation-scenes 1 --checkpoint-every 3 "
    "--no-tensorboard --device cpu --seed 7"
).split()


def digest(*parts: bytes) -> str:
    """Return a short hash of bytes."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def run_module(module: str, *arguments: str) -> None:
    """Run a command of the checkout that this process imports."""
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, stdout=sys.stderr)


def sample_digests(folder: Path) -> dict[str, str]:
    """Hash every flow file of the demo."""
    import flowfuse

    arguments = ("--times", "0.25,0.5", "--no-video", "--max-pictures", "0", "--device", "cpu")
    run_module("flowfuse.infer", str(flowfuse.sample_recording()), "-o", str(folder), *arguments)
    return {
        f"demo {path.relative_to(folder)}": digest(path.read_bytes())
        for path in sorted(folder.rglob("*.flo"))
    }


def training_digests(folder: Path) -> dict[str, str]:
    """Hash the weights after three steps, whatever the tensors are called."""
    from safetensors.torch import load_file

    run_module("flowfuse.train", *TRAINING, "-o", str(folder))
    tensors = load_file(folder / "model.safetensors").values()
    weights = sorted(t.numpy().tobytes() for t in tensors)
    return {"training weights": digest(*weights)}


def operator_digests() -> dict[str, str]:
    """Hash results and gradients of every operator on random inputs."""
    import torch

    from flowfuse import ops

    torch.manual_seed(0)
    found: dict[str, str] = {}

    def note(name: str, outputs, *leaves: torch.Tensor) -> None:
        outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        values = [value for value in outputs if value is not None]
        if leaves:
            total = sum(
                (v.float() * torch.linspace(-1, 1, v.numel()).view_as(v)).sum() for v in values
            )
            values += torch.autograd.grad(total, leaves)
        found[name] = digest(*(v.detach().float().numpy().tobytes() for v in values))

    def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape).to(dtype).requires_grad_()

    count, height, width = 5000, 37, 53
    x, y = torch.rand(count) * width, torch.rand(count) * height
    t, p = torch.randint(0, 10_000, (count,)).sort().values, torch.randint(0, 2, (count,))
    offsets, t0, t1 = (
        torch.tensor([0, 2000, count]),
        torch.tensor([0, 0]),
        torch.tensor([9000, 10_000]),
    )
    note("voxelize float", ops.voxelize(x, y, t, p, offsets, t0, t1, 5, height, width))
    raw = (x.short(), y.short())
    note("voxelize integer", ops.voxelize(*raw, t, p, offsets, t0, t1, 5, height, width))
    flow = leaf(2, 2, height, width)
    for mode in ("signed", "unsigned", "split"):
        warped = ops.warp_events(x, y, t, p, offsets, flow, t0, t1, t0, mode, height, width)
        note(f"warp_events {mode}", warped, flow)
    frames = [torch.rand(2, 1, height, width).requires_grad_() for _ in range(2)]
    sums = leaf(2, 1, height, width)
    note("common_gradient", ops.common_gradient(*frames, sums, flow), *frames, sums, flow)
    for dtype in (torch.float32, torch.bfloat16):
        field, mask = leaf(2, 4, 9, 13), leaf(2, 9 * 64, 9, 13, dtype=dtype)
        note(f"convex_upsample {dtype}", ops.convex_upsample(field, mask, 8), field, mask)
        for strategy in ("volume", "on_demand"):
            f0, f1 = (leaf(2, 48, 17, 23, dtype=dtype) for _ in range(2))
            coords = (torch.rand(2, 2, 17, 23) * 30 - 4).requires_grad_()
            look_up = ops.Correlation(f0, f1, radius=3, levels=3, strategy=strategy)
            note(f"correlation {strategy} {dtype}", look_up(coords), f0, f1, coords)
    return found


def worker() -> None:
    """Print the digests of the checkout on the path as one line of JSON."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = operator_digests()
        found |= sample_digests(Path(folder) / "demo")
        found |= training_digests(Path(folder) / "run")
    print(json.dumps(found))


def main() -> int:
    """Compare two checkouts; 1 where something differs."""
    # Python's own: flowfuse is imported by workers alone, each from its checkout.
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("before", type=Path, help="a checkout with its operators built in place")
    parser.add_argument("after", type=Path, help="another")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has torch")
    options = parser.parse_args()
    found = []
    for checkout in (options.before, options.after):
        environment = {**os.environ, "PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
        command = [options.python, str(Path(__file__).resolve()), "--worker"]
        done = subprocess.run(
            command, cwd=checkout, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
    before, after = found
    different = [n for n in sorted(before.keys() | after.keys()) if before.get(n) != after.get(n)]
    for name in sorted(before.keys() | after.keys()):
        print(f"{'DIFFERS' if name in different else 'same':8} {name}")
    print(f"{len(before)} results before, {len(after)} after, {len(different)} differ")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(worker() if "--worker" in sys.argv else main())
