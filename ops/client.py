"""A running server as the terminal commands see it: what it answers, or one line of why not."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import httpx

_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 30.0
# A change is answered when it is in force, and before that weights may come from slow storage.
_CHANGE_TIMEOUT_S = 3600.0
_MAX_REASON_CHARS = 300


class ServerError(Exception):
    """No server, or none that can answer this; the text is one line for people."""


@contextmanager
def connect(url: str, api_key: str | None = None) -> Iterator[httpx.Client]:
    """A client of the server whose root is `url`; failures inside become ServerError."""
    headers = key_header(api_key)
    # This machine is reached directly, whatever proxy the environment names.
    here = dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]"))
    timeout = httpx.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
    try:
        with httpx.Client(base_url=url, timeout=timeout, mounts=here, headers=headers) as client:
            yield client
    except httpx.InvalidURL as error:
        raise ServerError(f"{url} is no URL: {error}") from error


def key_header(api_key: str | None) -> dict[str, str]:
    """The header that carries a key.

    Raises:
        ServerError: it cannot be sent in one; the text does not repeat it.
    """
    if api_key is None:
        return {}
    if not all("!" <= char <= "~" for char in api_key):
        raise ServerError("the API key has what is not printable ASCII")
    return {"authorization": f"Bearer {api_key}"}


def get_json(client: httpx.Client, path: str) -> Any:
    """The body of GET `path`, parsed.

    Raises:
        ServerError: no answer, an error, or not JSON.
    """
    with _failures_in_words(client):
        response = client.get(path)
    return _json_of(client, response)


def get_text(client: httpx.Client, path: str) -> str:
    """The body of GET `path`.

    Raises:
        ServerError: no answer, or an error.
    """
    with _failures_in_words(client):
        response = client.get(path)
    _refuse_errors(client, response)
    return response.text


def post_change(client: httpx.Client, path: str, body: Mapping[str, Any]) -> Any:
    """The answer to POST `path`, parsed; it may take as long as loading weights does.

    Raises:
        ServerError: no answer, an error, or not JSON.
    """
    timeout = httpx.Timeout(_CHANGE_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
    with _failures_in_words(client):
        response = client.post(path, json=body, timeout=timeout)
    return _json_of(client, response)


def served_model(client: httpx.Client) -> str:
    """The name of the model the server has.

    Raises:
        ServerError: as `get_json`, or the server lists no model.
    """
    try:
        return str(get_json(client, "/v1/models")["data"][0]["id"])
    except (LookupError, TypeError) as error:
        raise ServerError(f"{_root(client)} lists no model: not Windrose?") from error


def stream_chat(client: httpx.Client, body: Mapping[str, Any]) -> Generator[str, None, None]:
    """Texts of one chat completion as they come. Closing it ends the request on the server.

    Raises:
        ServerError: no answer, an error before or within it, or an answer without an end.
    """
    # Escaped arguments and pasted bytes may hold what is not Unicode: it travels as "?".
    content = json.dumps({**body, "stream": True}, ensure_ascii=False).encode(errors="replace")
    request = client.build_request(
        "POST",
        "/v1/chat/completions",
        content=content,
        headers={"content-type": "application/json"},
        # A long prompt in a full server may take minutes to its first token.
        timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S),
    )
    with _failures_in_words(client):
        response = client.send(request, stream=True)
        try:
            if response.status_code != HTTPStatus.OK:
                response.read()
                _refuse_errors(client, response)
            for data in _event_data(response.iter_bytes()):
                if data == "[DONE]":
                    return
                yield _text(data)
        finally:
            response.close()
    raise ServerError("the server ended the connection within the answer")


def _event_data(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of server-sent events. Lines end at line feeds only: text may hold U+2028."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").decode(errors="replace").strip()


def _text(data: str) -> str:
    """The text in one event."""
    try:
        event = json.loads(data)
        if "error" in event:
            raise ServerError(f"the server ended the answer: {event['error']['message']}")
        return "".join(choice["delta"].get("content") or "" for choice in event["choices"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ServerError(f"the server sent what is no chat event: {_short(data)}") from error


@contextmanager
def _failures_in_words(client: httpx.Client) -> Iterator[None]:
    url = _root(client)
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise ServerError(
            f"no server answers at {url} ({error}); `windrose serve MODEL_DIR` starts one"
        ) from error
    except httpx.TimeoutException as error:
        raise ServerError(f"the server at {url} did not answer in time") from error
    except httpx.HTTPError as error:
        raise ServerError(f"the connection to {url} broke: {error}") from error


def _json_of(client: httpx.Client, response: httpx.Response) -> Any:
    _refuse_errors(client, response)
    try:
        return response.json()
    except ValueError as error:
        where = f"{_root(client)}{response.url.path}"
        raise ServerError(f"{where} did not answer JSON: not Windrose?") from error


def _refuse_errors(client: httpx.Client, response: httpx.Response) -> None:
    status = response.status_code
    if status == HTTPStatus.OK:
        return
    try:
        reason = str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        reason = response.text or response.reason_phrase
    raise ServerError(f"the server at {_root(client)} answered {status}: {_short(reason)}")


def _short(text: str) -> str:
    """In one line, cut where it is long."""
    return " ".join(text.split())[:_MAX_REASON_CHARS]


def _root(client: httpx.Client) -> str:
    return str(client.base_url).rstrip("/")
