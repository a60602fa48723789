"""Which attention actor gets which request, and which pipeline: pure decisions.

Where several actors have room, a request goes to the one that was sent the longest beginning of
its tokens: their keys and values are likely still there. What was sent where is remembered here,
in keys of whole blocks; what has been evicted there meanwhile nobody tells.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence

from actors.messages import GenerateRequest
from model.block_keys import extend_keys

MAX_KEYS = 8192  # remembered per actor: 1.2 MB, and 131,072 tokens of prompts in blocks of 16


class Assigner:
    """Shares requests out, among the attention actors of one pipeline or among pipelines."""

    def __init__(self, block_size: int, max_keys: int = MAX_KEYS) -> None:
        """With `max_keys` of 0 the load alone decides."""
        self._block_size = block_size
        self._max_keys = max_keys
        self._sent: dict[str, OrderedDict[bytes, None]] = {}  # actor -> keys, the oldest first

    def assign(
        self, requests: Sequence[GenerateRequest], unfinished: Mapping[str, int]
    ) -> list[str]:
        """The name of each request's actor; each counts for those behind it.

        `unfinished` has what each actor that serves has now. Ties go to the actor with fewer
        requests, then to the first. What was sent to actors that are not in it is forgotten.
        """
        self.keep(unfinished)
        if len(unfinished) == 1:
            return list(unfinished) * len(requests)
        loads = dict(unfinished)
        chosen = []
        for request in requests:
            name = self.pick(request, loads)
            loads[name] += 1
            chosen.append(name)
        return chosen

    def keep(self, names: Collection[str]) -> None:
        """Forget what was sent to all others."""
        for gone in self._sent.keys() - set(names):
            del self._sent[gone]

    def pick(self, request: GenerateRequest, loads: Mapping[str, int]) -> str:
        """The one of these that is to have a request, and is remembered to have been sent it."""
        keys = self._keys(request)
        name = min(_with_room(loads), key=lambda one: (-self._known(one, keys), loads[one]))
        self._remember(name, keys)
        return name

    def _keys(self, request: GenerateRequest) -> list[bytes]:
        keys: list[bytes] = []
        if self._max_keys:
            token_ids = request.prompt_token_ids + request.output_token_ids
            extend_keys(keys, token_ids, self._block_size, len(token_ids) // self._block_size)
        return keys

    def _known(self, name: str, keys: Sequence[bytes]) -> int:
        """How many blocks from the beginning an actor was sent."""
        sent = self._sent.get(name, ())
        for index, key in enumerate(keys):
            if key not in sent:
                return index
        return len(keys)

    def _remember(self, name: str, keys: Sequence[bytes]) -> None:
        sent = self._sent.setdefault(name, OrderedDict())
        for key in reversed(keys):  # the tail is forgotten before the head, as in the actor
            sent[key] = None
            sent.move_to_end(key)
        while len(sent) > self._max_keys:
            sent.popitem(last=False)


def _with_room(loads: Mapping[str, int]) -> list[str]:
    """Actors not overloaded beside the least loaded, which is always one of them.

    A prefix saves part of a prefill once, a crowd slows every step: so a quarter more requests
    at most, and two, lest a few idle actors scatter every conversation.
    """
    most = 2 + 1.25 * min(loads.values())
    return [name for name, load in loads.items() if load <= most]
