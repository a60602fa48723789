"""Where a streamed text ends: stop strings, found across chunk borders."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Watches one stream for its stop strings, the same however the text is cut into chunks.

    The match that ends first wins, as it would character by character; of several that end
    together the longest. Constant amortised work per character and stop string
    (Knuth-Morris-Pratt). ValueError for an empty stop string.
    """

    def __init__(self, stop: Sequence[str], *, include_stop: bool = False) -> None:
        if "" in stop:
            raise ValueError("a stop string must not be empty")
        self._matchers = [_Matcher(pattern) for pattern in stop]
        self._first_characters = {pattern[0] for pattern in stop}
        self._include_stop = include_stop
        self._held = ""  # a suffix of the text that may begin a stop string
        self._hit = False

    def push(self, delta: str) -> tuple[str, bool]:
        """Text that may be shown now, and whether a stop string was met.

        The text is cut before the stop string (behind it with `include_stop`); what comes
        after a hit is dropped.
        """
        if self._hit:
            return "", True
        if not self._held and self._first_characters.isdisjoint(delta):
            return delta, False
        text = self._held + delta
        for end, character in enumerate(delta, start=len(self._held) + 1):
            matched = max(m.advance(character) for m in self._matchers)
            if matched:
                self._hit, self._held = True, ""
                return text[: end if self._include_stop else end - matched], True
        hold_from = len(text) - max(m.progress for m in self._matchers)
        self._held = text[hold_from:]
        return text[:hold_from], False

    def finish(self) -> str:
        """The stream is over: what was held back, since no stop string came of it."""
        text, self._held = self._held, ""
        return text


class _Matcher:
    """One pattern's automaton; `progress` is how much of it the text's end matches."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        # _borders[n]: length of the longest proper border of the pattern's first n characters.
        self._borders = [0, 0]
        self.progress = 0
        for character in pattern[1:]:
            self._borders.append(self._next(self._borders[-1], character))

    def advance(self, character: str) -> int:
        """Take one character in; the pattern's length where it completes the pattern, else 0."""
        self.progress = self._next(self.progress, character)
        return self.progress if self.progress == len(self._pattern) else 0

    def _next(self, progress: int, character: str) -> int:
        while progress and self._pattern[progress] != character:
            progress = self._borders[progress]
        return progress + 1 if self._pattern[progress] == character else 0
