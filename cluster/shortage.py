"""Whether a cluster can hold what a deployment asks for, and if not, what is missing: pure.

Pipelines are packed or spread as well as it goes, never strictly, so all that counts is whether
every bundle finds a machine. As in Ray, a bundle lies on one machine, and amounts have four
decimals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from actors.pipeline.bundles import ACCELERATOR, Resources

_UNITS = 10_000

Counts = tuple[int, ...]  # how many bundles of each kind
Kind = tuple[tuple[str, float], ...]  # a bundle, so that equal ones are one kind


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster: its address, and what Ray can give of it."""

    name: str
    resources: Resources


@dataclass(frozen=True, slots=True)
class Shortage:
    """What is asked, what there is, and the fewest bundles that find no place there."""

    asked: tuple[Resources, ...]
    nodes: tuple[Node, ...]
    missing: tuple[Resources, ...]

    def __str__(self) -> str:
        """One paragraph."""
        there = f"there {_are(len(self.nodes), 'machine')}"
        if self.nodes:
            there += f": {_listed(self.nodes)}"
        text = f"asked: {_counted(self.asked)}; {there}; missing: {_counted(self.missing)}"
        reasons = [*_unknown(self.missing, self.nodes), *_sums(self.asked, self.nodes)]
        return f"{text} ({'; '.join(reasons)})" if reasons else text


def shortage(bundles: Sequence[Resources], nodes: Sequence[Node]) -> Shortage | None:
    """None where every bundle finds a place at once. Exact, and quick for a few kinds of bundles.

    Machine after machine, it keeps the ways to have placed most: those that no other beats in
    every kind of bundle.
    """
    wanted = Counter(_kind(bundle) for bundle in bundles)
    # Those with most amounts to find come first: where it must be one or another, they are placed.
    kinds = sorted(wanted, key=lambda kind: (len(kind), kind), reverse=True)
    counts = tuple(wanted[kind] for kind in kinds)
    names = {name for kind in kinds for name, _ in kind}
    best = {tuple(0 for _ in kinds)}
    fills_of: dict[Kind, list[Counts]] = {}  # machines that are alike hold the same
    for node in nodes:
        useful = {name: amount for name, amount in node.resources.items() if name in names}
        alike = _kind(useful)
        if alike not in fills_of:
            fills_of[alike] = _fills(kinds, counts, useful)
        best = _unbeaten(
            tuple(min(have + more, most) for have, more, most in zip(placed, fill, counts))
            for placed in best
            for fill in fills_of[alike]
        )
        if counts in best:
            return None
    if counts in best:
        return None
    placed = max(best, key=lambda one: (sum(one), one))
    lacking = [dict(kind) for kind, a, b in zip(kinds, counts, placed) for _ in range(a - b)]
    return Shortage(tuple(bundles), tuple(nodes), tuple(lacking))


def shown(resources: Resources) -> str:
    """`CPU 8, GPU 4, A100`: what matters for placing, an accelerator by its bare name."""
    amounts = [f"{name} {resources[name]:g}" for name in ("CPU", "GPU") if resources.get(name)]
    return ", ".join(amounts + accelerators(resources)) or "nothing"


def accelerators(resources: Resources) -> list[str]:
    """The bare names of the accelerators."""
    return sorted(n.removeprefix(ACCELERATOR) for n in resources if n.startswith(ACCELERATOR))


def _kind(resources: Resources) -> Kind:
    return tuple(sorted(resources.items()))


def _units(amount: float) -> int:
    return round(amount * _UNITS)


def _fills(kinds: Sequence[Kind], counts: Counts, resources: Resources) -> list[Counts]:
    """The ways to fill one empty machine that no other beats."""
    partial: list[tuple[Counts, dict[str, int]]] = [
        ((), {name: _units(amount) for name, amount in resources.items()})
    ]
    for kind, most in zip(kinds, counts):
        partial = [
            ((*fill, count), left)
            for fill, free in partial
            for count, left in _taking(kind, most, free)
        ]
    return sorted(_unbeaten(fill for fill, _ in partial))


def _taking(kind: Kind, most: int, free: Mapping[str, int]) -> Iterable[tuple[int, dict[str, int]]]:
    """So many bundles of a kind, and what they leave free: none, one, ... as long as it lasts."""
    left = dict(free)
    for count in range(most + 1):
        yield count, dict(left)
        for name, amount in kind:
            left[name] = left.get(name, 0) - _units(amount)
        if min(left.values(), default=0) < 0:
            return


def _unbeaten(fills: Iterable[Counts]) -> set[Counts]:
    """Those that none of the others has at least as much of in every kind."""
    kept: list[Counts] = []
    for fill in sorted(set(fills), key=sum, reverse=True):
        if not any(all(a >= b for a, b in zip(other, fill)) for other in kept):
            kept.append(fill)
    return set(kept)


def _unknown(missing: Sequence[Resources], nodes: Sequence[Node]) -> list[str]:
    """Accelerators that are asked for and that no machine has."""
    there = {name for node in nodes for name in accelerators(node.resources)}
    asked = {name for bundle in missing for name in accelerators(bundle)}
    return [f"no machine has {name}" for name in sorted(asked - there)]


def _sums(asked: Sequence[Resources], nodes: Sequence[Node]) -> list[str]:
    """Of what there is too little even if all machines were one."""
    lines = []
    for name in ("CPU", "GPU"):
        needed = sum(bundle.get(name, 0.0) for bundle in asked)
        there = sum(node.resources.get(name, 0.0) for node in nodes)
        if _units(needed) > _units(there):
            lines.append(f"{name}: {needed:g} asked, {there:g} there")
    return lines


def _counted(bundles: Sequence[Resources]) -> str:
    counts = Counter(shown(bundle) for bundle in bundles)
    return " + ".join(f"{count} x ({what})" for what, count in counts.items())


def _listed(nodes: Sequence[Node]) -> str:
    """Machines with the same together."""
    alike: dict[str, list[str]] = {}
    for node in nodes:
        alike.setdefault(shown(node.resources), []).append(node.name)
    return ", ".join(f"{' and '.join(names)} ({what})" for what, names in alike.items())


def _are(count: int, what: str) -> str:
    return f"is 1 {what}" if count == 1 else f"are {count or 'no'} {what}s"
