"""`dice precompute`: statistics of the training features."""

from argparse import Namespace
from pathlib import Path

from dice.cli import inputs
from dice.cli.statistics import print_statistics
from dice.console import note
from dice.eval import precompute
from dice.images import preprocess
from dice.io.output import check_target
from dice.stats import training


def run(args: Namespace) -> int:
    net = inputs.open_network(args, args.in_dataset)
    out = Path(args.out) if args.out else inputs.default_statistics(args.root, args.in_dataset, net.arch)[0]
    if args.shard and not args.out:
        out = out.with_suffix(f".{args.shard[0]}of{args.shard[1]}.npz")
    training.check_name(out, args.shard)
    check_target(out, inputs.checkpoint_path(args, args.in_dataset))
    train = inputs.own_or_known(args.in_data, args.in_dataset, args.root, "train")
    train.match_labels(len(net.bias), net.class_names)
    unlabelled = 0 if train.labels is None else int((train.labels < 0).sum())
    if unlabelled:
        train.notes.append(
            f"{train.name}: {unlabelled} of {len(train)} images have no label (-1), so that no label is "
            "used: all images count as one class"
        )
    subset = precompute.select(train, max_images=args.max_images, seed=args.seed, shard=args.shard)
    state = inputs.statistics_files(Path(args.base_dir), net, args.name, subset)[1]
    transform = preprocess.transform_for(net.arch)
    full = not args.mean_only and out.suffix == ".npz"
    decoding = inputs.decoding(args)
    found = precompute.compute(net, subset, transform, state, full=full, fresh=args.fresh, decoding=decoding)
    training.save(out, found, state)
    print_statistics(out, found, net)
    for words in train.notes:
        note(words)
    return 0
