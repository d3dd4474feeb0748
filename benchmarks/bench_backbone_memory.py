"""Measures the peak memory of one forward pass of dice and of other libraries, each in a process of its own.

    python benchmarks/bench_backbone_memory.py [--net densenet resnet50 bit] [--threads 2]

The figure is the largest resident set of the process: interpreter, libraries, weights and activations. Needs
the extra `bench`.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

NETS = {  # name: (dice's name, side of an image, batch size)
    "densenet": ("densenet", 32, 64),
    "resnet50": ("resnet50", 224, 8),
    "bit": ("BiT-S-R101x1", 480, 1),
}


def prepare(net, x, threads, folder):
    """Write the weights and the ONNX file, which the engines read."""
    import bench_backbones as bench
    import torch

    torch.manual_seed(0)
    model = bench.NETS[net][0]().eval()
    bench.made_up_weights(model)
    np.savez(folder / "weights.npz", **{k: v.numpy() for k, v in model.state_dict().items() if v.ndim})
    if hasattr(model, "standardise"):
        model.standardise()
    torch.save(model.state_dict(), folder / "weights.pt")
    bench.onnx_file(model, torch.from_numpy(x), folder)


def run_dice(net, x, threads, folder):
    import dice
    from dice import _core

    _core.threads_set(threads)
    dice.load_backbone(NETS[net][0], folder / "weights.npz").forward(x)


def run_torch(net, x, threads, folder, compiled=False):
    import torch
    import torch_models

    torch.set_num_threads(threads)
    make = {"densenet": torch_models.DenseNet, "resnet50": torch_models.ResNet50, "bit": torch_models.BiT}[
        net
    ]
    model = make().eval()
    model.load_state_dict(torch.load(folder / "weights.pt"))
    model = model.to(memory_format=torch.channels_last)
    if compiled:
        import torch._inductor.config as inductor

        inductor.freezing = True
        model = torch.compile(model)
    with torch.inference_mode():
        model(torch.from_numpy(x).contiguous(memory_format=torch.channels_last))


def run_compiled(net, x, threads, folder):
    run_torch(net, x, threads, folder, compiled=True)


def run_onnxruntime(net, x, threads, folder):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )


def run_openvino(net, x, threads, folder):
    import openvino

    core = openvino.Core()
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
    }
    core.compile_model(core.read_model(str(folder / "model.onnx")), "CPU", config)(x)


ENGINES = {
    "prepare": prepare,
    "dice": run_dice,
    "torch eager, channels last": run_torch,
    "torch.compile, frozen": run_compiled,
    "ONNX Runtime": run_onnxruntime,
    "OpenVINO": run_openvino,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=2, metavar=("ENGINE", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _, side, batch = NETS[args.net[0]]
        x = np.random.default_rng(0).standard_normal((batch, 3, side, side)).astype(np.float32)
        ENGINES[args.child[0]](args.net[0], x, args.threads, Path(args.child[1]))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        return
    for net in args.net:
        print(f"\n{net}, batch {NETS[net][2]}, {args.threads} threads: peak memory, MB")
        with tempfile.TemporaryDirectory() as folder:
            for engine in ENGINES:
                command = [sys.executable, __file__, "--net", net, "--threads", str(args.threads)]
                done = subprocess.run([*command, "--child", engine, folder], capture_output=True, text=True)
                if engine == "prepare":
                    done.check_returncode()
                    continue
                lines = (done.stdout if done.returncode == 0 else done.stderr).splitlines()
                print(
                    f"{engine:28s} {lines[-1] if done.returncode == 0 else 'fails: ' + lines[-1]:>8s}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
