"""Takes the words after `fetch`; gives checkpoints and COCO where the suites look for them."""

import argparse
import os

from harness.commands.shared import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    Commands,
    add_baselines,
    add_command,
    add_places,
    checkpoints_of,
    data_dir_of,
    tell,
)


def add(commands: Commands) -> None:
    """`fetch`."""
    fetch = add_command(
        commands,
        "fetch",
        _fetch,
        "checkpoints of models, coco2017-val, coco2017-train",
        "Fetch published checkpoints and COCO to where the suites look for them. What is there already is left "
        "alone; what was interrupted goes on where it stopped. Proxies and CA bundles are taken from HTTP_PROXY, "
        "HTTPS_PROXY, NO_PROXY and REQUESTS_CA_BUNDLE. A zip of COCO that lies in --data-dir under its own name is "
        "unpacked in place of being fetched, and stays.",
    )
    fetch.add_argument("names", nargs="*", metavar="NAME", help="models as in `list`, coco2017-val, coco2017-train")
    add_places(fetch, "checkpoints", "data-dir")
    fetch.add_argument(
        "--mirror",
        metavar="BASE_URL",
        help="ask BASE_URL/HOST/PATH in place of https://HOST/PATH, as `wget -x` lays copies out (env DETGATE_MIRROR)",
    )
    fetch.add_argument(
        "--dry-run", action="store_true", help="say what, from where, how large, to where; write nothing"
    )
    add_baselines(fetch)


def _fetch(options: argparse.Namespace) -> int:
    from harness.fetch.command import Request, fetch

    request = Request(
        names=tuple(options.names),
        baselines=options.baselines,
        checkpoints=checkpoints_of(options),
        data_dir=data_dir_of(options),
        mirror=options.mirror or os.environ.get("DETGATE_MIRROR") or None,
        dry_run=options.dry_run,
    )
    try:
        for line in fetch(request):
            print(line, flush=True)
    except KeyboardInterrupt:
        tell(f"interrupted; to go on where it stopped: {request.command}")
        return EXIT_INTERRUPTED
    return EXIT_OK
