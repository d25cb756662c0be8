"""Why a request gets no answer though nothing is wrong with its image, task or adapter."""

from __future__ import annotations


class Unavailable(Exception):
    """No answer now; the same request may have one later.

    Attributes:
        status: 503 or 504.
        message: why.
    """

    def __init__(self, message: str, status: int = 503) -> None:
        super().__init__(message)
        self.message, self.status = message, status


class Forbidden(Exception):
    """The sender may not change what is served.

    Attributes:
        status: 401 where a token is missing or wrong, else 403.
        message: what would be needed.
    """

    def __init__(self, message: str, status: int = 403) -> None:
        super().__init__(message)
        self.message, self.status = message, status
