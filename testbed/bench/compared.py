"""The table of `bench.proxy`: medians of rounds, ours beside Envoy's."""

from __future__ import annotations

import statistics

Rows = dict[tuple[str, str], dict[str, list[float]]]
"""(role, quantity) → implementation → a value per round."""


def table(found: Rows) -> str:
    """Medians, ours beside Envoy's; the ratio of the medians, and between which the rounds' own ratios were."""
    lines = ["| role | quantity | meshbed | envoy | ratio | rounds |", "|---|---|---:|---:|---:|---:|"]
    for (role, quantity), values in found.items():
        places = 3 if quantity.endswith("ms") else 1
        medians = {name: statistics.median(held) for name, held in values.items()}
        shown = [f"{medians[name]:,.{places}f}" if name in medians else "" for name in ("meshbed", "envoy")]
        ratio = spread = ""
        if medians.get("meshbed") and medians.get("envoy"):
            ratio = f"{medians['meshbed'] / medians['envoy']:.2f}"
            each = [a / b for a, b in zip(values["meshbed"], values["envoy"], strict=True) if b]
            spread = f"{min(each):.2f}–{max(each):.2f}" if len(each) > 1 else ""
        lines.append(f"| {role} | {quantity} | {' | '.join(shown)} | {ratio} | {spread} |")
    return "\n".join(lines)
