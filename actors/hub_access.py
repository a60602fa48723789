"""How the hub is reached, what it refuses, and who hears how far a download is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from pydantic import SecretStr

from configs.environment import HUB_CACHES, HUB_ENDPOINT
from configs.schema import WindroseConfig

OnFetch = Callable[[int, int], None]  # is told bytes to come, and bytes that came


class HubError(ValueError):
    """A model on the hub cannot be had; the text names it, and the file where it is one."""


@dataclass(frozen=True, slots=True)
class HubAccess:
    """How this deployment reaches the hub: None is what each machine's own huggingface_hub does."""

    endpoint: str | None = None
    cache_dir: str | None = None
    token: SecretStr | None = None
    offline: bool = False

    @classmethod
    def of(cls, config: WindroseConfig, environment: Mapping[str, str]) -> HubAccess:
        """As the environment of this process has it, for actors wherever they are."""
        from huggingface_hub import constants, get_token

        token = get_token()
        moved = any(environment.get(name) for name in HUB_CACHES)
        return cls(
            endpoint=environment.get(HUB_ENDPOINT) or None,
            cache_dir=config.download_dir or (constants.HF_HUB_CACHE if moved else None),
            token=None if token is None else SecretStr(token),
            offline=constants.is_offline_mode(),
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """For functions of huggingface_hub."""
        token = None if self.token is None else self.token.get_secret_value()
        return {"endpoint": self.endpoint, "token": token}

    @property
    def where(self) -> str:
        """For messages."""
        from huggingface_hub import constants

        return self.endpoint or constants.ENDPOINT

    @property
    def cache(self) -> str:
        """On this machine."""
        from huggingface_hub import constants

        return self.cache_dir or constants.HF_HUB_CACHE


@contextmanager
def refusals(
    name: str, revision: str | None, access: HubAccess, file: str | None
) -> Iterator[None]:
    """What the hub or the network refuses, in one line."""
    from httpx2 import HTTPError
    from huggingface_hub import errors

    at, of = access.where, name if file is None else f"{name}: {file}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(
            f"{of}: access is restricted: ask for it at {at}/{name}, and give a token that has it"
            " (HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{name}: no revision {revision!r} at {at}") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"{name}: neither a directory here nor a model at {at}, or a private one that the token"
            " (HF_TOKEN) does not open"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        cause = error.__cause__
        if access.offline or cause is None:
            raise HubError(not_cached(name, file, access)) from error
        raise HubError(f"{of}: {at} cannot be reached: {_line(cause)}") from error
    except errors.EntryNotFoundError as error:
        raise HubError(f"{of} is not among its files at {at}") from error
    except errors.SafetensorsParsingError as error:
        raise HubError(f"{of}: no safetensors file: {_line(error)}") from error
    except errors.HfHubHTTPError as error:
        raise HubError(f"{of}: {at} answers {error.response.status_code}") from error
    except HTTPError as error:
        raise HubError(f"{of}: {at} cannot be reached: {_line(error)}") from error
    except OSError as error:
        raise HubError(f"{of}: cannot be fetched: {_line(error)}") from error


def not_cached(name: str, file: str | None, access: HubAccess) -> str:
    """Why it cannot be had."""
    return (
        f"{name}: {file or 'it'} is not in {access.cache}, and offline mode (HF_HUB_OFFLINE)"
        " forbids to fetch it"
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _Heard:
    """What huggingface_hub takes for a progress bar: draws nothing."""

    def __init__(self, on_fetch: OnFetch | None, total: int | None, initial: int) -> None:
        self._tell = on_fetch or (lambda _to_come, _came: None)
        self._tell(total or 0, initial)

    def update(self, n: float | None = 1) -> None:
        """So many bytes came."""
        self._tell(0, int(n or 0))

    def close(self) -> None:
        """The file is there."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def bar(on_fetch: OnFetch | None) -> Any:
    """The class of bars that `on_fetch` hears of."""

    class Bar(_Heard):
        def __init__(self, *, total: int | None = None, initial: int = 0, **_: object) -> None:
            super().__init__(on_fetch, total, initial)

    return Bar
