"""What a rank's loop does over epochs, without a thread: the half of `fake_actors` that moves.

Follows `actors/ranks/epochs.py`, `actors/ranks/step_loop.py` and `actors/ranks/rank_life.py`: an
epoch that is offered begins once the one before is left; a lost peer makes all leave; a move is
one step at which all attention ranks have been told the same epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from model.placement import ExpertPlacement


@dataclass(eq=False)
class FakeEpoch:
    """One set of process groups."""

    number: int
    attention: tuple[int, ...]
    expert: tuple[int, ...]
    placement: ExpertPlacement
    met: dict[int, FakeLoop] = field(default_factory=dict)
    stands: bool = False
    broken: bool = False

    def breaks(self) -> None:
        """A peer is lost: all that are in it, or will be, leave."""
        self.broken = True
        for one in list(self.met.values()):
            if one.current is self and not one.hung:
                one.leave(moved=False)

    def step(self) -> None:
        """Between two steps: leave it if all attention ranks have been told the same."""
        peers = [self.met[rank] for rank in self.attention]
        if any(one.current is not self or one.busy or one.hung for one in peers):
            return
        if peers[0].told > 0 and len({one.told for one in peers}) == 1:
            for one in list(self.met.values()):
                if one.current is self and not one.hung:
                    one.leave(moved=True)


class FakeLoop:
    """One rank's loop. `busy`: in a long step; `hung`: it does nothing any more."""

    def __init__(self) -> None:
        self.hung = self.busy = self.is_attention = False
        self.placement: ExpertPlacement | None = None
        self.versions: list[int] = []  # of the placements used, in order
        self.adopting: list[ExpertPlacement] = []  # between the next two steps
        self.current: FakeEpoch | None = None
        self.next: FakeEpoch | None = None
        self.told = 0
        self._newest, self._over, self._moved = 0, 0, False

    def offer(self, epoch: FakeEpoch) -> None:
        """Go on with this epoch once the one before is left; not with older ones."""
        if epoch.number > self._newest:
            self._newest, self.next = epoch.number, epoch
            if self.current is None:
                self._begin()

    def interrupt(self, newest: int = 0) -> None:
        """Leave the epoch, and forget one that has not begun: its peers lose this rank.

        Epochs up to `newest` are not begun any more.
        """
        self._newest = max(self._newest, newest)
        dropped, self.next = self.next, None
        for epoch in (dropped, self.current):
            if epoch is not None:
                epoch.breaks()

    def leave(self, *, moved: bool) -> None:
        """Leave the epoch; go on with the next if it is there."""
        assert self.current is not None
        self._over, self._moved, self.current = self.current.number, moved, None
        self.on_left()
        if self.next is not None:
            self._begin()

    def moved_on(self, epoch: int) -> bool | None:
        """Whether it left `epoch` by a move; None: it has not left."""
        if self._over < epoch:
            return None
        return self._over > epoch or self._moved

    def rest(self) -> None:
        """The long step is over."""
        self.busy = False
        self.between_steps()

    def between_steps(self) -> None:
        """Do what waits for the end of a step."""
        if self.current is None or self.busy or self.hung:
            return
        for placement in self.adopting:
            if self.placement is not None and placement.version > self.placement.version:
                self._use(placement)
        self.adopting = []
        self.on_step()
        self.current.step()

    def on_left(self) -> None:
        """It has left an epoch."""

    def on_step(self) -> None:
        """What was to be adopted is."""

    def _begin(self) -> None:
        epoch = self.current = self.next
        self.next = None
        assert epoch is not None
        if self.is_attention:
            self._use(epoch.placement)
            if self.told <= epoch.number:
                self.told = 0
        if epoch.broken:
            self.leave(moved=False)
        else:
            self.between_steps()

    def _use(self, placement: ExpertPlacement) -> None:
        self.placement = placement
        self.versions.append(placement.version)
