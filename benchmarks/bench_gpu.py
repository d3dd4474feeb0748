"""Networks, head and ranking on a GPU, dice beside its peers, in one interleaved run.

    python benchmarks/bench_gpu.py [--net densenet resnet50 bit] [--batch 1 64 256] [--device cuda] [--json FILE]

Networks: float32 images that live on the GPU, logits back on the host; "dice uint8 host" instead begins with bytes on
the host, as evaluation does. Peers: PyTorch eager channels last, torch.compile(max-autotune), a CUDA graph of eager, and
TensorRT (torch_tensorrt) where installed; float32 without TF32, bf16 by autocast. "+ cuBLAS" is dice with DICE_CUBLAS=1.
Head and ranking include what moves between host and GPU. Medians; a peer that is not there is named as missing.
Needs the extra `bench` with a PyTorch made for CUDA.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from bench_backbones import NETS, dice_network, made_up_weights
from bench_head import interleaved

import dice
from dice import _core


def dice_cases(model, arch, side, batch, device, x):
    """(name, run) of dice in every precision; x (N, 3, H, W) lives on the GPU."""
    host = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
    for library in ("", " + cuBLAS"):
        os.environ["DICE_CUBLAS"] = "1" if library else "0"
        for precision in ("float32", "bf16x3", "bf16"):
            try:
                net = dice_network(model, arch, precision, device)
            except dice.DeviceError as error:
                yield f"dice {precision}{library}", str(error)
                continue
            if not library or "cublas" in net.info()["kernels"]:
                yield f"dice {precision}{library}", lambda net=net: net.forward(x)[1]
            if not library:
                yield f"dice {precision} uint8 host", lambda net=net: net.forward(host)[1]
    os.environ.pop("DICE_CUBLAS")


def graph_of(run, x):
    """`run` on the memory of x, captured as a CUDA graph."""
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


def peer_cases(model, x):
    """(name, run, or why it is missing) of every peer."""
    last = model.cuda().to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    for precision in ("float32", "bf16"):
        def run(x, net=last, precision=precision):
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
                return net(x)[1]

        yield f"torch eager {precision}", lambda run=run: run(x).float().cpu().numpy()
        compiled = torch.compile(last, mode="max-autotune")
        yield (f"torch.compile {precision}",
               lambda run=run, compiled=compiled: run(x, compiled).float().cpu().numpy())
        yield f"torch CUDA graph {precision}", graph_of(run, x)
        try:
            import torch_tensorrt
        except ImportError as error:
            yield f"TensorRT {precision}", f"not installed: {error}"
            continue
        kind = torch.float32 if precision == "float32" else torch.bfloat16
        engine = torch_tensorrt.compile(last, inputs=[x], enabled_precisions={kind}, disable_tf32=True)
        yield f"TensorRT {precision}", lambda engine=engine: engine(x)[1].float().cpu().numpy()


def bench_network(name, batch, device, repeats):
    make, arch, side, _, _ = NETS[name]
    torch.manual_seed(0)
    model = make().eval()
    made_up_weights(model)
    x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1)).to(device)
    found = list(dice_cases(model, arch, side, batch, device, x))
    if hasattr(model, "standardise"):
        model.standardise()
    found += peer_cases(model, x)
    runs = {engine: run for engine, run in found if callable(run)}
    want = next(iter(runs.values()))()
    differs = {engine: float(np.linalg.norm(run() - want) / np.linalg.norm(want)) for engine, run in runs.items()}
    medians = interleaved(runs, repeats)
    best = {precision: max(1e3 * batch / ms for engine, ms in medians.items()
                           if not engine.startswith("dice") and engine.endswith(precision))
            for precision in ("float32", "bf16")}  # fmt: skip
    print(f"\n{name}, batch {batch}\n{'engine':28s} {'images/s':>9s} {'x best float32':>15s} {'x best bf16':>12s} {'difference':>11s}")
    for engine, run in found:
        if engine not in medians:
            print(f"{engine:28s} missing: {run}")
            continue
        speed = 1e3 * batch / medians[engine]
        against = "".join(f"{speed / best[p]:{width}.2f}" for p, width in (("float32", 16), ("bf16", 13)))
        print(f"{engine:28s} {speed:9.1f}{against} {differs[engine]:11.1e}"
              + (" (other images)" if "uint8" in engine else ""))
    return [{"net": name, "batch": batch, "engine": engine, "images_per_s": 1e3 * batch / ms, "difference": differs[engine]}
            for engine, ms in medians.items()]


def bench_head(batch, device, repeats, classes=1000, features=2048):
    """The last layer on features that live on the GPU, plain and with 10 % of its weights."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((classes, features)).astype(np.float32)
    bias, mean = rng.standard_normal(classes).astype(np.float32), rng.random(features)
    h = torch.from_numpy(rng.random((batch, features), np.float32)).to(device)
    masked = dice.DICE(weight, bias, 90, mean=mean, device=device)
    plain = dice.DICE(weight, bias, None, device=device)
    w = torch.from_numpy(weight * masked.keep_).to(device)
    b = torch.from_numpy(bias).to(device)
    cases = {
        "dice p=90": lambda: masked.score_samples(h),
        "dice plain": lambda: plain.score_samples(h),
        "torch dense": lambda: torch.logsumexp(torch.nn.functional.linear(h, w, b), 1).cpu(),
        "dice ranking": lambda: _core.device_rank(mean, weight, 90, False, device),
    }
    if batch * weight.nbytes <= 8 << 30:
        cases["broadcast"] = lambda: torch.logsumexp((h[:, None, :] * w).sum(2) + b, 1).cpu()
    medians = interleaved(cases, repeats)
    print(f"\nhead {classes} x {features}, batch {batch}")
    for name, ms in medians.items():
        size = masked._head().info()[1] if name == "dice p=90" else weight.nbytes
        print(f"{name:28s} {ms:9.3f} ms {(size + h.nbytes) / ms / 1e6:9.1f} GB/s of what it must read")
    return [{"head": name, "batch": batch, "ms": ms} for name, ms in medians.items()]


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
        print(f"no GPU to measure: {reason or 'this PyTorch is not made for CUDA'} ({plugin})", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    print(f"{torch.cuda.get_device_name(args.device)}, torch {torch.__version__}, dice built with "
          f"{_core.build_info()['cuda']}, medians of {args.repeats}")
    rows = []
    with torch.inference_mode():
        for batch in args.batch:
            for name in args.net:
                rows += bench_network(name, batch, args.device, args.repeats)
            rows += bench_head(batch, args.device, args.repeats)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
