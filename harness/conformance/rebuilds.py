"""Takes a cell that was built several times from nothing; gives findings on how far its builds differ."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.conformance.finding import Finding, measured
from harness.conformance.metamorphic import same_bound
from harness.conformance.subject import Maps
from harness.judge.baseline import MAXIMUM_SPREAD
from harness.judge.previous import MARGINS
from harness.measure.throughput import Throughput
from harness.model.parity import deviations
from harness.model.registry import Precision


@dataclass(frozen=True, eq=False)
class Build:
    """One of the builds: head maps of the same images, AP on the same data set, and its speed, timed in turns."""

    maps: Maps
    map_50_95: float
    speed: Throughput


@dataclass(frozen=True)
class Builds:
    """All builds of one cell. repeatable: the engine claims the same bits whenever it is built."""

    precision: Precision
    repeatable: bool
    all: Sequence[Build]


def rebuilt_outputs(builds: Builds) -> Finding:
    """Outputs of each build beside the first one's."""
    first, *others = (build.maps for build in builds.all)
    figure = max(deviations(first, maps)[0].relative for maps in others)
    bound = same_bound(builds.precision, builds.repeatable)
    promise = f"{len(builds.all)} builds from nothing give the same outputs"
    return measured("rebuilt_outputs", promise, figure, bound, "relative L2 error")


def rebuilt_map(builds: Builds) -> Finding:
    """AP of the best build less that of the worst."""
    found = [build.map_50_95 for build in builds.all]
    bound = MARGINS[("rebuilt", builds.precision)].map_50_95
    promise = f"{len(found)} builds from nothing have the same AP"
    told = f"{min(found):.4f} to {max(found):.4f}"
    return measured("rebuilt_map", promise, round(max(found) - min(found), 9), bound, "AP", told)


def rebuilt_fps(builds: Builds) -> Finding:
    """Spread of FPS over the builds: one accepted speed has to hold for all of them."""
    found = [build.speed.fps for build in builds.all]
    figure = statistics.stdev(found) / statistics.mean(found)
    promise = f"{len(found)} builds from nothing are as fast as each other"
    told = f"{min(found):.2f} to {max(found):.2f} FPS"
    made = measured("rebuilt_fps", promise, figure, MAXIMUM_SPREAD, "of FPS (standard deviation)", told)
    noise = list(dict.fromkeys(phrase for build in builds.all for phrase in build.speed.noise))
    return made if made.held or not noise else replace(made, doubt=f"noise: {'; '.join(noise)}")


CHECKS: Mapping[str, Callable[[Builds], Finding]] = {
    check.__name__: check for check in (rebuilt_outputs, rebuilt_map, rebuilt_fps)
}
