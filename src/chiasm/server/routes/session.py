"""How the console holds a key: in a cookie that scripts cannot read and other sites do not send.

A browser's `<img>` cannot carry a header, so the key that the page was given once goes along as a
cookie. Programs send it as a header and need none of this.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from chiasm.server.callers import COOKIE, presented
from chiasm.server.dependencies import State

router = APIRouter(prefix="/v1/session", tags=["session"])


@router.post("", operation_id="begin_session", summary="Keep a key in a cookie", status_code=204)
async def begin_session(request: Request, runtime: State) -> Response:
    """The key of the Authorization header, kept until the browser is closed."""
    text = presented(request.headers)
    accounts = await runtime.accounts()
    await accounts.caller(text)
    answer = Response(status_code=204)
    if text is not None:
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, text, httponly=True, samesite="strict", secure=secure)
    return answer


@router.delete("", operation_id="end_session", summary="Forget the key", status_code=204)
async def end_session() -> Response:
    """The browser holds it no more; the key itself goes on."""
    answer = Response(status_code=204)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer
