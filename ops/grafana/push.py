"""`windrose grafana push`: bring the dashboards into a Grafana that runs; again and again alike."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from grafana_api.grafana_api import GrafanaClientError, GrafanaException
from grafana_api.grafana_face import GrafanaFace
from requests.exceptions import RequestException

from ops.grafana.boards import DASHBOARDS

FOLDER_UID, FOLDER_TITLE = "windrose", "Windrose"
_TRIES = 3  # of a dashboard that somebody else saves at the same moment
_TIMEOUT_S = 15.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class PushError(Exception):
    """Grafana cannot be reached or refuses; the text is one line for people."""


def push(url: str, token: str) -> int:
    """Create or update the folder and all dashboards; returns the exit status.

    Raises:
        ValueError: `url` is no address of HTTP.
        PushError: Grafana does not answer, or refuses.
    """
    grafana = _connect(url, token)
    try:
        _ensure_folder(grafana)
        for dashboard in DASHBOARDS:
            outcome = _push_one(grafana, dashboard.json())
            print(f"{outcome}: {dashboard.title} ({url.rstrip('/')}/d/{dashboard.uid})")
    except GrafanaException as error:
        raise PushError(f"Grafana at {url} refused: {error.message}") from error
    except RequestException as error:
        raise PushError(f"no Grafana answers at {url}: {error}") from error
    return 0


def _connect(url: str, token: str) -> GrafanaFace:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--url {url!r} is not http://HOST or https://HOST")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    prefix = f"{parts.path.strip('/')}/" if parts.path.strip("/") else ""
    grafana = GrafanaFace(
        auth=token,
        host=host,
        port=parts.port,
        url_path_prefix=prefix,
        protocol=parts.scheme,
        timeout=_TIMEOUT_S,
    )
    # This machine is reached directly, whatever proxy the environment names.
    grafana.api.s.trust_env = parts.hostname not in _LOOPBACK
    return grafana


def _ensure_folder(grafana: GrafanaFace) -> None:
    if _unless_missing(grafana.folder.get_folder, FOLDER_UID) is not None:
        return
    try:
        grafana.folder.create_folder(FOLDER_TITLE, FOLDER_UID)
    except GrafanaClientError as error:
        if error.status_code not in (HTTPStatus.CONFLICT, HTTPStatus.PRECONDITION_FAILED):
            raise  # else another push was faster


def _push_one(grafana: GrafanaFace, wanted: Mapping[str, Any]) -> str:
    """Save a dashboard over the version that was read, and over no later one."""
    for _ in range(_TRIES):
        found = _unless_missing(grafana.dashboard.get_dashboard, wanted["uid"])
        there = {} if found is None else found["dashboard"]
        if found is not None and found["meta"].get("folderUid") == FOLDER_UID:
            same = {k: v for k, v in there.items() if k not in ("id", "version")}
            if same == wanted:
                return "unchanged"
        versions = {"id": there.get("id"), "version": there.get("version", 0)}
        body = {
            "dashboard": {**wanted, **versions},
            "folderUid": FOLDER_UID,
            "overwrite": False,
            "message": "windrose grafana push",
        }
        try:
            grafana.dashboard.update_dashboard(body)
        except GrafanaClientError as error:
            if error.status_code != HTTPStatus.PRECONDITION_FAILED:
                raise
            continue
        return "created" if found is None else "updated"
    raise PushError(f"the dashboard {wanted['uid']} is being changed by somebody else")


def _unless_missing(get: Any, uid: str) -> Any:
    try:
        return get(uid)
    except GrafanaClientError as error:
        if error.status_code == HTTPStatus.NOT_FOUND:
            return None
        raise
