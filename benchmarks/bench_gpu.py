"""Compares networks, last layer and ranking on a GPU with other libraries, in one interleaved run.

    python benchmarks/bench_gpu.py [--net densenet resnet50 bit] [--batch 1 64 256] [--device cuda] [--json
FILE]

Networks take float32 images that live on the GPU and return logits to the host; "dice uint8 host" takes bytes
of the host instead, as evaluation does; "+ cuBLAS" is dice with DICE_CUBLAS=1. The other libraries are
PyTorch eager channels last, torch.compile(max-autotune), a CUDA graph of eager, and TensorRT (torch_tensorrt)
if installed, in float32 without TF32 and in bf16 by autocast. The features of the last layer and the ranked
weights live on the GPU; scores and mask return to the host. Figures are medians. The table names each engine
that is missing or fails, and the reason. Needs the extra `bench` with a PyTorch made for CUDA.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np

import dice
from dice import _core

try:
    import torch
    from bench_backbones import NETS, dice_network, made_up_weights
    from bench_head import interleaved
except ImportError as error:
    sys.exit(f"bench_gpu.py needs PyTorch made for CUDA, and the extra `bench`: {error}")


def dice_cases(model, arch, side, batch, device, x):
    """Yield (name, function that returns a run) for dice in every precision; x (N, 3, H, W) lives on the
    GPU."""
    host = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)

    def made(precision, cublas):
        os.environ["DICE_CUBLAS"] = cublas
        try:
            net = dice_network(model, arch, precision, device)
        finally:
            del os.environ["DICE_CUBLAS"]
        if cublas == "1" and "cublas" not in net.info()["kernels"]:
            raise dice.DeviceError("has no product for cuBLAS in this precision")
        return net

    for precision in ("float32", "bf16x3", "bf16"):
        yield f"dice {precision}", lambda p=precision: (lambda net: lambda: net.forward(x)[1])(made(p, "0"))
        yield (
            f"dice {precision} uint8 host",
            lambda p=precision: (lambda net: lambda: net.forward(host)[1])(made(p, "0")),
        )
        yield (
            f"dice {precision} + cuBLAS",
            lambda p=precision: (lambda net: lambda: net.forward(x)[1])(made(p, "1")),
        )


def graph_of(run, x):
    """A function that replays run(x), captured as a CUDA graph."""
    side_stream = torch.cuda.Stream()
    with torch.cuda.stream(side_stream):
        for _ in range(3):
            run(x)
    torch.cuda.current_stream().wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        z = run(x)

    def replay():
        graph.replay()
        return z.float().cpu().numpy()

    return replay


def other_cases(model, x):
    """Yield (name, function that returns a run) for every other library."""
    last = model.to(x.device, memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    for precision in ("float32", "bf16"):

        def run(x, net=last, precision=precision):
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
                return net(x)[1]

        def tensorrt(precision=precision):
            import torch_tensorrt

            kind = torch.float32 if precision == "float32" else torch.bfloat16
            engine = torch_tensorrt.compile(last, inputs=[x], enabled_precisions={kind}, disable_tf32=True)
            return lambda: engine(x)[1].float().cpu().numpy()

        compiled = torch.compile(last, mode="max-autotune")
        yield f"torch eager {precision}", lambda run=run: lambda: run(x).float().cpu().numpy()
        yield (
            f"torch.compile {precision}",
            lambda run=run, compiled=compiled: lambda: run(x, compiled).float().cpu().numpy(),
        )
        yield f"torch CUDA graph {precision}", lambda run=run: graph_of(run, x)
        yield f"TensorRT {precision}", tensorrt


def prepared(cases):
    """{name: run} of the cases that work, {name: reason} of the others, {name: first result}.

    Any exception counts as a failure, since the other libraries raise all kinds.
    """
    runs, missing, results = {}, {}, {}
    for name, make in cases:
        try:
            run = make()
            results[name] = run()
            runs[name] = run
        except Exception as error:
            missing[name] = (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            )
    return runs, missing, results


def bench_network(name, batch, device, repeats):
    make, arch, side, _, _ = NETS[name]
    torch.manual_seed(0)
    model = make().eval()
    made_up_weights(model)
    x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1)).to(torch_device(device))
    runs, missing, results = prepared(dice_cases(model, arch, side, batch, device, x))
    if hasattr(model, "standardise"):
        model.standardise()
    for mine, others in zip((runs, missing, results), prepared(other_cases(model, x)), strict=True):
        mine.update(others)
    if not runs:
        print(f"\n{name}, batch {batch}: nothing ran: {missing}")
        return []
    want = next(iter(results.values()))
    differs = {
        engine: float(np.linalg.norm(z - want) / np.linalg.norm(want)) for engine, z in results.items()
    }
    medians = interleaved(runs, repeats)
    best = {}
    for precision in ("float32", "bf16"):
        engines = [name for name in medians if not name.startswith("dice") and name.endswith(precision)]
        best[precision] = 1e3 * batch / min((medians[name] for name in engines), default=float("nan"))
    print(
        f"\n{name}, batch {batch}\n{'engine':28s} {'images/s':>9s} {'x best float32':>15s} "
        f"{'x best bf16':>12s} {'difference':>11s}"
    )
    for engine, ms in medians.items():
        speed = 1e3 * batch / ms
        against = "".join(f"{speed / best[p]:{width}.2f}" for p, width in (("float32", 16), ("bf16", 13)))
        print(
            f"{engine:28s} {speed:9.1f}{against} {differs[engine]:11.1e}"
            + (" (other images)" if "uint8" in engine else "")
        )
    for engine, reason in missing.items():
        print(f"{engine:28s} missing: {reason}")
    return [
        {
            "net": name,
            "batch": batch,
            "engine": engine,
            "images_per_s": 1e3 * batch / ms,
            "difference": differs[engine],
        }
        for engine, ms in medians.items()
    ]


def bench_head(batch, device, repeats, classes=1000, features=2048):
    """Time the last layer on features that live on the GPU, plain and with 10 % of its weights."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((classes, features)).astype(np.float32)
    bias, mean = rng.standard_normal(classes).astype(np.float32), rng.random(features)
    on = torch_device(device)
    h = torch.from_numpy(rng.random((batch, features), np.float32)).to(on)
    whole = torch.from_numpy(weight).to(on)
    masked = dice.DICE(weight, bias, 90, mean=mean, device=device)
    plain = dice.DICE(weight, bias, None, device=device)
    w = torch.from_numpy(weight * masked.keep_).to(on)
    b = torch.from_numpy(bias).to(on)
    cases = {
        "dice p=90": lambda: masked.score_samples(h),
        "dice plain": lambda: plain.score_samples(h),
        "torch dense": lambda: torch.logsumexp(torch.nn.functional.linear(h, w, b), 1).cpu(),
        "dice ranking": lambda: _core.device_rank(mean, whole, 90, False, device),
    }
    if batch * weight.nbytes <= 8 << 30:
        cases["broadcast"] = lambda: torch.logsumexp((h[:, None, :] * w).sum(2) + b, 1).cpu()
    runs, missing, _ = prepared((name, lambda run=run: run) for name, run in cases.items())
    medians = interleaved(runs, repeats)
    print(f"\nhead {classes} x {features}, batch {batch}")
    for name, ms in medians.items():
        size = masked._head().info()[1] if name == "dice p=90" else weight.nbytes
        read = size + (0 if name == "dice ranking" else 4 * batch * features)
        print(f"{name:28s} {ms:9.3f} ms {read / ms / 1e6:9.1f} GB/s of what it must read")
    for name, reason in missing.items():
        print(f"{name:28s} missing: {reason}")
    return [{"head": name, "batch": batch, "ms": ms} for name, ms in medians.items()]


def torch_device(name):
    return torch.device(name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", nargs="*", choices=NETS, default=list(NETS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", help="write the rows to this file")
    args = parser.parse_args()
    reason, plugin = _core.cuda_status()
    if reason is not None or not torch.cuda.is_available():
        print(
            f"no GPU to measure: {reason or 'this PyTorch is not made for CUDA'} ({plugin})",
            file=sys.stderr,
        )
        return 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    print(
        f"{torch.cuda.get_device_name(torch_device(args.device))}, torch {torch.__version__}, "
        f"dice built with {_core.build_info()['cuda']}, medians of {args.repeats}"
    )
    rows = []
    with torch.inference_mode(), torch.cuda.device(torch_device(args.device)):
        for batch in args.batch:
            for name in args.net:
                rows += bench_network(name, batch, args.device, args.repeats)
            rows += bench_head(batch, args.device, args.repeats)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
