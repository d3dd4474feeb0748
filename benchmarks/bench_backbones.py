"""Compares images per second of whole networks with other libraries, in one interleaved run.

    python benchmarks/bench_backbones.py [--net densenet resnet50 bit] [--precision float32 bf16x3 bf16]
[--json FILE]

The other libraries are PyTorch eager in both memory formats, torch.compile with frozen weights, ONNX Runtime,
and OpenVINO (latency and streams). Each round times every engine once, in turn; the figures are medians over
the rounds, and ratios are to the best other library of the run. A library that is not installed is listed as
missing. Needs the extra `bench`. `--isa` restricts the other libraries too, by the switches of oneDNN and
PyTorch; ONNX Runtime has none. bench_backbone_memory.py measures peak memory.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch_models import BiT, DenseNet, ResNet50

import dice
from dice import _core

OTHERS_ISA = {  # instruction set of dice: the environment that restricts other libraries to it
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "ATEN_CPU_CAPABILITY": "avx512"},
}
NETS = {  # name: (module, dice's name, side of an image, batch sizes, GMAC for an image)
    "densenet": (DenseNet, "densenet", 32, (64, 1), 0.288),
    "resnet50": (ResNet50, "resnet50", 224, (8, 1), 4.09),
    "bit": (BiT, "BiT-S-R101x1", 480, (1,), 35.8),
}


def made_up_weights(model: torch.nn.Module) -> None:
    """Draw weights that keep activations in range. Speed does not depend on the weights."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif value.is_floating_point() and name.endswith("weight"):
            value.uniform_(0.2, 0.6, generator=generator)


def dice_network(model, arch, precision, device="cpu"):
    """The network of dice with the state dict of `model`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "weights.npz")
        np.savez(file, **{k: v.numpy() for k, v in model.state_dict().items() if v.ndim})
        return dice.load_backbone(arch, file, precision=precision, device=device)


def dice_runner(model, arch, precision, isa):
    """A function from images to logits, by dice with the state dict of `model`."""
    if isa:
        os.environ["DICE_ISA"] = isa
    net = dice_network(model, arch, precision)
    return lambda x: net.forward(x.numpy())[1]


def onnx_file(model, example, folder) -> str:
    path = str(Path(folder, "model.onnx"))
    torch.onnx.export(model, (example,), path, input_names=["x"], dynamo=False)
    return path


def onnxruntime_runner(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _core.threads_count()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[1])


def openvino_runner(path, hint, precision):
    import openvino

    core = openvino.Core()
    config = {
        "PERFORMANCE_HINT": hint,
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": _core.threads_count(),
    }
    model = core.compile_model(core.read_model(path), "CPU", config)
    if hint == "LATENCY":
        return lambda x: torch.from_numpy(model(x.numpy())[1])
    requests = [
        model.create_infer_request() for _ in range(model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
    ]

    def run(x):
        """Run as many batches at once as the device wants and return the result of one."""
        for request in requests:
            request.start_async(x.numpy())
        for request in requests:
            request.wait()
        return torch.from_numpy(requests[0].get_output_tensor(1).data)

    run.batches = len(requests)
    return run


def engines(net, batch, precisions, isa):
    """Yield (name, whether it is another library, precision, runner or the reason why it is missing)."""
    make, arch, side, _, _ = NETS[net]
    torch.manual_seed(0)
    model = make().eval()
    made_up_weights(model)
    example = torch.randn(batch, 3, side, side)
    for precision in precisions:
        try:
            yield f"dice {precision}", False, precision, dice_runner(model, arch, precision, isa)
        except dice.InputError as error:
            yield f"dice {precision}", False, precision, str(error)
    if hasattr(model, "standardise"):
        model.standardise()
    nchw = make().eval()
    nchw.load_state_dict(model.state_dict())
    yield "torch eager NCHW", True, "float32", lambda x: nchw(x)[1]
    last = make().eval()
    last.load_state_dict(model.state_dict())
    last = last.to(memory_format=torch.channels_last)
    yield (
        "torch eager channels last",
        True,
        "float32",
        lambda x: last(x.contiguous(memory_format=torch.channels_last))[1],
    )
    import torch._inductor.config as inductor

    inductor.freezing = True
    inductor.cpp.simdlen = 256 if isa == "avx2" else None
    compiled = torch.compile(last)
    yield (
        "torch.compile frozen",
        True,
        "float32",
        lambda x: compiled(x.contiguous(memory_format=torch.channels_last))[1],
    )

    def autocast(x):
        with torch.autocast("cpu", torch.bfloat16):
            return last(x.contiguous(memory_format=torch.channels_last))[1].float()

    if "bf16" in precisions:
        yield "torch channels last bf16", True, "bf16", autocast
    with tempfile.TemporaryDirectory() as folder:
        path = None
        try:
            path = onnx_file(model, example, folder)
        except ImportError as error:
            for name in ("ONNX Runtime", "OpenVINO"):
                yield name, True, "float32", f"not installed: {error}"
            return
        for name, precision, make_runner in (
            ("ONNX Runtime", "float32", lambda: onnxruntime_runner(path)),
            ("OpenVINO latency", "float32", lambda: openvino_runner(path, "LATENCY", "f32")),
            ("OpenVINO streams", "float32", lambda: openvino_runner(path, "THROUGHPUT", "f32")),
            ("OpenVINO latency bf16", "bf16", lambda: openvino_runner(path, "LATENCY", "bf16")),
            ("OpenVINO streams bf16", "bf16", lambda: openvino_runner(path, "THROUGHPUT", "bf16")),
        ):
            if precision not in precisions:
                continue
            try:
                yield name, True, precision, make_runner()
            except ImportError as error:
                yield name, True, precision, f"not installed: {error}"
            except RuntimeError as error:
                yield name, True, precision, f"fails: {str(error).splitlines()[-1]}"


def measure(net, batch, precisions, isa, rounds, seconds, clock):
    """Rows {engine, other, precision, images_per_s, difference or missing} of one network and batch size."""
    side, gmac = NETS[net][2], NETS[net][4]
    x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))
    rows, runs = [], []
    want = None
    with torch.inference_mode():
        for name, other, precision, run in engines(net, batch, precisions, isa):
            row = {"net": net, "batch": batch, "engine": name, "other": other, "precision": precision}
            rows.append(row)
            if isinstance(run, str):
                row["missing"] = run
                continue
            try:
                got = np.asarray(run(x))
            except Exception as error:  # the failure of another library is a result and is shown
                if not other:
                    raise
                row["missing"] = f"fails: {type(error).__name__}: {str(error).splitlines()[0][:100]}"
                continue
            if want is None:
                want = got
            row["difference"] = float(np.linalg.norm(got - want) / np.linalg.norm(want))
            start = clock()
            run(x)
            once = clock() - start
            runs.append((row, run, max(1, round(seconds / once)), []))
        for _ in range(rounds):
            for _, run, times, seen in runs:
                run(x)  # not timed: the threads of the previous engine may still spin
                start = clock()
                for _ in range(times):
                    run(x)
                seen.append(times * batch * getattr(run, "batches", 1) / (clock() - start))
    for row, _, _, seen in runs:
        row["images_per_s"] = statistics.median(seen)
        row["gflops"] = 2 * gmac * row["images_per_s"]
    return rows


def show(rows, peak):
    """Print the table of one network and batch size."""
    best = {
        p: max(
            (r["images_per_s"] for r in rows if r["other"] and r["precision"] == p and "images_per_s" in r),
            default=float("nan"),
        )
        for p in ("float32", "bf16")
    }
    print(f"\n{rows[0]['net']}, batch {rows[0]['batch']}")
    print(
        f"{'engine':28s} {'images/s':>9s} {'GFLOP/s':>8s} {'of peak':>8s} {'x best float32':>15s} "
        f"{'x best bf16':>12s} {'difference':>11s}"
    )
    for row in rows:
        if "missing" in row:
            print(f"{row['engine']:28s} missing: {row['missing']}")
            continue
        speed = row["images_per_s"]
        print(
            f"{row['engine']:28s} {speed:9.1f} {row['gflops']:8.0f} {row['gflops'] / peak:8.0%} "
            f"{speed / best['float32']:15.2f} {speed / best['bf16']:12.2f} {row['difference']:11.1e}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--batch", type=int, nargs="+", help="default: 64 and 1 (densenet), 8 and 1, 1 (bit)")
    parser.add_argument("--precision", nargs="+", default=["float32", "bf16x3", "bf16"])
    parser.add_argument(
        "--isa", choices=OTHERS_ISA, help="restrict dice and the others to this instruction set"
    )
    parser.add_argument("--threads", type=int, default=0, help="default: all processors")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each engine in each round")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor time, not the clock's: with --threads 1 for a machine that is not idle",
    )
    parser.add_argument("--json", help="write the rows to this file")
    args = parser.parse_args()
    wanted = OTHERS_ISA.get(args.isa, {})
    # The libraries read these variables when they are loaded, so the program starts again with them.
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})
    _core.threads_set(args.threads)
    torch.set_num_threads(_core.threads_count())
    clock = time.process_time if args.processor_time else time.perf_counter
    peak = _core.peak_gflops(args.isa) * _core.threads_count()
    print(
        f"{sys.platform}, {_core.threads_count()} threads, dice isa {_core.isa_select(args.isa)}, "
        f"measured float32 peak {peak:.0f} GFLOP/s, torch {torch.__version__}, "
        f"{args.rounds} rounds of {args.seconds} s, medians"
        f"{', processor time' if args.processor_time else ''}"
    )
    rows = []
    for net in args.net:
        for batch in args.batch or NETS[net][3]:
            rows += measure(net, batch, args.precision, args.isa, args.rounds, args.seconds, clock)
            show([r for r in rows if r["net"] == net and r["batch"] == batch], peak)
    if args.json:
        Path(args.json).write_text(json.dumps({"peak_gflops": peak, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
