"""What the HTTP surface can answer instead of a result, as one tree.

    ApiError                    status  type                   default code
    |- BadRequest               400     invalid_request_error
    |  |- BodyTooLarge          413                            request_too_large
    |  `- BodyTimeout           408                            request_timeout
    |- DeadlineExceeded         504     server_error           deadline_exceeded
    |- Unauthorized             401     invalid_request_error  invalid_api_key
    |- Forbidden                403     permission_error       forbidden
    |- NotFound                 404     invalid_request_error
    |- MethodNotAllowed         405     invalid_request_error  method_not_allowed
    |- Conflict                 409     conflict_error         conflict
    |- Overloaded               429     rate_limit_error       rate_limit_exceeded
    |- InternalError            500     server_error           internal_error
    `- Unavailable              503     server_error           service_unavailable
       `- Draining              503, and the connection is closed

Token sources raise these too. They pickle, so they may cross from another actor.
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import ClassVar

MAX_MESSAGE_CHARS = 500  # a message may quote the client's input, which may be megabytes


class ApiError(Exception):
    """An error a client sees, with the request's field at fault in `param` where there is one."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None
    closes_connection: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(_shortened(message))
        self.param = None if param is None else _shortened(param)
        self.code = code or self.default_code
        self.retry_after_s = retry_after_s

    @property
    def message(self) -> str:
        """What to tell the client."""
        return str(self.args[0])

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON body in OpenAI's shape."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """Headers that go with the body; Retry-After is whole seconds, at least 1."""
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.closes_connection:
            headers["connection"] = "close"
        return headers


class BadRequest(ApiError):
    """The request's own fault."""

    status = HTTPStatus.BAD_REQUEST
    type = "invalid_request_error"


class BodyTooLarge(BadRequest):
    """The request body is over the limit; the rest of it may still be on its way."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    default_code = "request_too_large"
    closes_connection = True


class BodyTimeout(BadRequest):
    """The client takes too long to send the request's body, and may still be at it."""

    status = HTTPStatus.REQUEST_TIMEOUT
    default_code = "request_timeout"
    closes_connection = True


class DeadlineExceeded(ApiError):
    """The request was in order, and its time was over before its answer was complete."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    default_code = "deadline_exceeded"


class Unauthorized(ApiError):
    """No key, or none that opens this; the text never repeats what was sent."""

    status = HTTPStatus.UNAUTHORIZED
    type = "invalid_request_error"
    default_code = "invalid_api_key"

    def headers(self) -> dict[str, str]:
        """Those of every error, and how to do better."""
        return super().headers() | {"www-authenticate": "Bearer"}


class Forbidden(ApiError):
    """Whoever asks is known or need not be, and may not do this."""

    status = HTTPStatus.FORBIDDEN
    type = "permission_error"
    default_code = "forbidden"


class NotFound(ApiError):
    """No such model, or no such path."""

    status = HTTPStatus.NOT_FOUND
    type = "invalid_request_error"


class MethodNotAllowed(ApiError):
    """The path is there, but not with this method."""

    status = HTTPStatus.METHOD_NOT_ALLOWED
    type = "invalid_request_error"
    default_code = "method_not_allowed"


class Conflict(ApiError):
    """The request is in order and this is not the moment for it: try again later."""

    status = HTTPStatus.CONFLICT
    type = "conflict_error"
    default_code = "conflict"


class Overloaded(ApiError):
    """Too much is waiting already, or the caller has had what it may have in a minute."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s=retry_after_s)


class InternalError(ApiError):
    """The server's own fault; the log says more than the client is told."""

    default_code = "internal_error"


class Unavailable(ApiError):
    """Nothing can serve this now, but something will."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    default_code = "service_unavailable"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s=retry_after_s)


class Draining(Unavailable):
    """This server finishes what it accepted and takes nothing new; another connection may do."""

    closes_connection = True


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 3] + "..."
