"""How many rows of prompts a step may have beside decodes, so that streams keep flowing.

A stream waits for the whole of each step. So a prompt gets what makes a step some multiple as
long as one that only decodes, no more; and each prompt that waits as well brings as much again,
or more where more wait than are read to. One that arrives alone hardly disturbs the streams; many
get whole steps, and the machine does not fall behind for the sake of a few streams. While nothing
decodes, prompts have whole steps, which end soon enough for who comes meanwhile.
"""

from __future__ import annotations

from actors.scheduling.step_costs import StepCosts

FLOOR_ROWS = 16  # for each prompt go on in a step, however long they take; for a crowd more
_AIM = 0.7  # of the time to spare: what is measured is noisy, and longer contexts cost more
_LONG_S = 0.75  # no step is to take longer for the sake of prompts
_SURE_ROWS = 512  # go on in a step even so: fewer cost much more each
_STALE_STEPS = 32  # a step that only decodes is due, if there was none for so long
_DUE_EVERY = 8  # and is then one of these, counted alike by all ranks of a pipeline


class StepPace:
    """Of one attention rank. Told of no step, it lets prompts have the rows of any machine."""

    def __init__(self, max_rows: int, max_stretch: float) -> None:
        """Steps of at most `max_rows`; 0 as `max_stretch` switches the pace off.

        `max_stretch`: how many times as long as one that only decodes a step may take.
        """
        self._max_rows = max_rows
        self._extra = _AIM * (max_stretch - 1.0) if max_stretch else None
        self._costs = StepCosts()
        self._peer_decodes = 0  # rows of the other attention ranks, in the last step
        self._told = False
        self._num_begun = 0  # steps of this epoch
        self._begun: tuple[float, int, int] | None = None  # at_s, decodes, prefills of all ranks

    def begin(
        self,
        now_s: float,
        decodes: int,
        prefills: int,
        peer_decodes: int = 0,
        peer_prefills: int = 0,
    ) -> None:
        """Take in that a step begins, at `now_s` of a monotonic clock, and the one before is over.

        The peers are the other attention ranks. A step without any rows is a rest.
        """
        if self._begun is not None:
            at_s, decode_rows, prefill_rows = self._begun
            self._costs.observe(decode_rows, prefill_rows, now_s - at_s)
        self._peer_decodes = peer_decodes
        self._told = True
        self._num_begun += 1
        self._begun = now_s, decodes + peer_decodes, prefills + peer_prefills

    def interrupt(self) -> None:
        """Take in that an epoch begins: how long the step under way took says nothing."""
        self._begun = None
        self._num_begun = 0

    def most_rows(self) -> int:
        """Rows of a step that does not take too long."""
        if self._extra is None:
            return self._max_rows
        return min(self._max_rows, max(_SURE_ROWS, self._costs.whole_rows(_LONG_S)))

    def max_prefill_rows(self, decodes: int, prompts: int) -> int:
        """Rows of the next step for so many prompts beside so many decodes, all of this rank.

        0 if it is to only decode, so that its time is known; never where it decodes nothing.
        """
        most = self.most_rows()
        total = decodes + self._peer_decodes
        if self._extra is None or not total or not self._told:
            return most
        if decodes and self._costs.calm_age(total) >= _STALE_STEPS and self._is_due():
            return 0
        calm_s = self._costs.calm_s(total) or 0.0
        # To cut a crowd's prompts small for one stream would make it wait longer too, in the end:
        # a step with any of them reads all weights.
        weight = prompts * max(1.0, prompts / total)
        rows = self._costs.prefill_rows(self._extra * calm_s * weight)
        return min(max(rows, int(FLOOR_ROWS * weight)), most)

    def _is_due(self) -> bool:
        return self._num_begun % _DUE_EVERY == _DUE_EVERY - 1
