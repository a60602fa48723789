"""Constant load: so many clients, each of which asks again as soon as it has its answer."""

from __future__ import annotations

import threading
from collections import Counter
from types import TracebackType

from tests.e2e.streams import Stream, prompt_of

Answers = Counter[tuple[int, tuple[int, ...]]]  # (number of the prompt, tokens) -> how often


class Load:
    """Clients 0 to `count`, client i with the prompt of stream i, greedy. To be used with `with`.

    Leaving waits for the last answers, and fails if any was not whole.
    """

    def __init__(self, url: str, count: int, max_tokens: int) -> None:
        self._url = url
        self._max_tokens = max_tokens
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._stop = threading.Event()
        self._answers: Answers = Counter()
        self._failures: list[str] = []
        self._clients = [
            threading.Thread(target=self._ask, args=(i,), daemon=True) for i in range(count)
        ]

    def __enter__(self) -> Load:
        for client in self._clients:
            client.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for client in self._clients:
            client.join(120.0)
        if kind is None:
            assert not any(client.is_alive() for client in self._clients)
            assert not self._failures, self._failures

    def _ask(self, number: int) -> None:
        while not self._stop.is_set():
            stream = Stream(self._url, prompt_of(number), self._max_tokens)
            failure = None
            try:
                stream.run()
            except Exception as error:
                failure = repr(error)
            if not stream.done:
                failure = f"{failure or stream.error or 'cut'} after {len(stream.token_ids)} tokens"
            with self._ended:
                if failure is None:
                    self._answers[number, tuple(stream.token_ids)] += 1
                else:
                    self._failures.append(failure)
                self._ended.notify_all()

    def take(self) -> Answers:
        """All answers since the last time."""
        with self._lock:
            answers, self._answers = self._answers, Counter()
        return answers

    def more(self, count: int) -> None:
        """Return when `count` further requests have ended."""
        with self._ended:
            end = self._count() + count
            assert self._ended.wait_for(lambda: self._count() >= end, 120.0)

    def _count(self) -> int:
        return sum(self._answers.values()) + len(self._failures)


def calm_answers(url: str, count: int, max_tokens: int) -> list[tuple[int, ...]]:
    """What each client is told when nothing happens."""
    streams = [Stream(url, prompt_of(number), max_tokens) for number in range(count)]
    for stream in streams:
        stream.start()
    for stream in streams:
        stream.join(60.0)
        assert stream.done
    return [tuple(stream.token_ids) for stream in streams]
