"""`dice download`: data sets, weights and statistics into the data root."""

from argparse import Namespace

from dice.console import say
from dice.errors import InputError
from dice.images import download, sources


def run(args: Namespace) -> int:
    if not args.names:
        for name, members in sources.GROUPS.items():
            say(f"{name:22s} {' '.join(members)}")
        for name, item in sources.ITEMS.items():
            say(f"{name:22s} {item.url} -> {item.path}")
        return 0
    outcomes = download.download(args.names, args.root, say=say)
    failed = [outcome.name for outcome in outcomes if outcome.status == "failed"]
    if failed:
        raise InputError(
            f"{len(failed)} of {len(outcomes)} downloads failed: {', '.join(failed)}; the lines above say "
            "what to do"
        )
    return 0
