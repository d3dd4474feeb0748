"""`dice precompute`: statistics of the training features."""

from argparse import Namespace
from pathlib import Path

from dice.backbone import Backbone
from dice.cli import inputs
from dice.console import note, say
from dice.eval import precompute
from dice.images import preprocess
from dice.io.output import check_target
from dice.stats import training as statistics


def run(args: Namespace) -> int:
    net = inputs.open_network(args, args.in_dataset)
    out = Path(args.out) if args.out else inputs.default_statistics(args.root, args.in_dataset, net.arch)[0]
    if args.shard and not args.out:
        out = out.with_suffix(f".{args.shard[0]}of{args.shard[1]}.npz")
    statistics.check_name(out, args.shard)
    check_target(out)
    train = inputs.own_or_known(args.in_data, args.in_dataset, args.root, "train")
    train.match_labels(len(net.bias), net.class_names)
    part = precompute.select(train, max_images=args.max_images, seed=args.seed, shard=args.shard)
    state = inputs.statistics_files(Path(args.base_dir), net, args.name, part)[1]
    transform = preprocess.transform_for(net.arch)
    full = not args.mean_only and out.suffix == ".npz"
    decoding = inputs.decoding(args)
    found = precompute.compute(net, part, transform, state, full=full, fresh=args.fresh, decoding=decoding)
    statistics.save(out, found, state)
    print_statistics(out, found, net)
    for words in train.notes:
        note(words)
    return 0


def print_statistics(out: Path, found: statistics.Statistics, net: Backbone | None = None) -> None:
    """What `out` holds; with the network also how well a sample stands for all images."""
    about = found.about
    say(
        f"{out}: {found.moments.features} features over {found.count} of {about['images_in_set']} images of "
        f"{about['set']}"
    )
    for words in about["left_out"]:
        note(words)
    if about["left_out"]:
        note(f"{len(about['left_out'])} of {about['size']} images were left out")
    if net is not None and about["sample"] and not about["shard"]:
        for p in (10, 70, 90):
            drift, spread = precompute.mask_drift(found, net.weight, net.bias, p)
            say(
                f"mask at p={p}: differs from that of all images in about {drift:.2f} % of the weights "
                f"(+- {spread:.2f})"
            )
