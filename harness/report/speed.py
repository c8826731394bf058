"""Takes a speed comparison, or two kept ones; gives its lines or JSON: verdict, what a call takes, what differs."""

import json
from typing import Any

from harness.judge.sequential import CONFIDENCE, LEAST_SLOW_DOWN, P_REGRESSED, WORST_SLOW_DOWN, Decision, sign_flip_p
from harness.judge.verdict import Status
from harness.sides.comparison import SpeedComparison
from harness.sides.kept import TwoRecords

_RULES = {
    Status.REGRESSED: f"at least {LEAST_SLOW_DOWN:.0%} slower, p < {P_REGRESSED:g}",
    Status.IMPROVED: f"at least {LEAST_SLOW_DOWN:.0%} faster, p < {P_REGRESSED:g}",
    Status.PASS: f"the {CONFIDENCE:.0%} bound is under {WORST_SLOW_DOWN:.0%} slower",
    Status.INCONCLUSIVE: "the pairs scatter too much: close other programs, or give longer turns with --seconds",
}


def render(found: SpeedComparison, form: str) -> str:
    """`json`: the whole record. `table` and `markdown`: a few lines, the verdict first."""
    return _in(form, found.as_json(), _lines(found))


def render_records(found: TwoRecords, form: str) -> str:
    """Two kept comparisons beside each other, as `render` does one."""
    return _in(form, found.as_json(), _record_lines(found))


def _in(form: str, content: dict[str, Any], lines: list[str]) -> str:
    if form == "json":
        return json.dumps(content, indent=1)
    return "\n".join(f"- {line}" for line in lines) if form == "markdown" else "\n".join(lines)


def _record_lines(found: TwoRecords) -> list[str]:
    first, second = found.first.new, found.second.new
    return [
        f"{found.status} {second['cell']} now, {first['cell']} before: a call takes {_interval(found.decision)}: "
        f"{_RULES[found.status]}",
        f"both beside: {_side(found.first.old)}",
        *(
            f"{name}: a call takes {_interval(one.decision)} after {one.decision.pairs} pairs: {_side(one.new)}"
            for name, one in (("before", found.first), ("now", found.second))
        ),
        *_changed(first, second),
    ]


def _interval(decision: Decision) -> str:
    return f"{decision.slow_down:+.2%} [{decision.low:+.2%}, {decision.high:+.2%}]"


def _lines(found: SpeedComparison) -> list[str]:
    decision, old, new = found.decision, found.old, found.new
    flip = sign_flip_p([pair.log_ratio for pair in found.pairs])
    return [
        f"{found.status} {new['cell']} beside {old['cell']}: a call takes {_interval(decision)} "
        f"after {decision.pairs} pairs: {_RULES[found.status]}",
        f"old: {_side(old)}",
        f"new: {_side(new)}",
        f"p of not slower: {decision.p_slower:.2g} (t test), {flip:.2g} (sign flips)",
        *_changed(old, new),
    ]


def _side(facts: dict[str, Any]) -> str:
    weights = "" if facts["start"] == "checkpoint" else f", {facts['start'].upper()}"
    ran = f"batch {facts['batch']}, {facts['precision_ran']} on {facts['device_ran']}"
    return f"{facts['label']} ({facts['engine_version']}, {ran}{weights})"


def _changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Versions, flags and artefacts in which the sides differ."""
    found = []
    for name in ("versions", "flags", "artifacts"):
        a, b = old[name], new[name]
        changes = [f"{key} {a.get(key)} -> {b.get(key)}" for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
        if changes:
            found.append(f"{name}: {'; '.join(_short(change) for change in changes)}")
    return found


def _short(text: str) -> str:
    """Hashes by their first digits."""
    return " ".join(word[:12] if len(word) == 64 else word for word in text.split(" "))
