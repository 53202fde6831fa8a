"""The one error of a request that the gateway doesn't answer, whichever transport it came by."""

from sparktier.configs.errors import RequestError


class Refused(RequestError):
    """A request that is refused (a 4xx of HTTP) or failed (a 5xx); `param` is the field at fault.

    `retry_after_s` is when it may succeed. `close` also ends the connection, for a client that sends nothing. One that
    is still sending would lose the answer. `tier` is the name of the one that had no room.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
        close: bool = False,
        tier: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.close = close
        self.tier = tier
