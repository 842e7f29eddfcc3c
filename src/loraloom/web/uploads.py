"""Bodies that go to the disk as they come: bounded, never held in memory, gone again when the sender hangs up."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from loraloom.errors import FileFormatError
from loraloom.studio.uploads import Intake, Received

__all__ = ["received_file"]

_PIECE = 2**20
_DRAINED = 64 * 2**20
"""Of a body that is not wanted so much is read all the same: a sender in the middle of it does not hear the answer."""


async def received_file(request: Request, intake: Intake, dataset: Path, name: str) -> list[Received]:
    """Take the body of a request as a file of this name into a dataset, and say what became of it.

    Raises OutputError where the disk takes no more.
    """
    length = request.headers.get("content-length", "")
    body = request.stream()
    try:
        intake.check_size(name, int(length) if length.isdecimal() else 0)
        with intake.arriving(dataset) as file:
            with file.open("r+b") as out:
                await _write(body, intake, name, out)
            return await run_in_threadpool(intake.take, file, dataset, name)
    except FileFormatError as error:
        await _drain(body)
        return [Received(name, problem=error.problem, hint=error.hint)]
    except ClientDisconnect:  # nobody hears the answer
        return []


async def _write(body: AsyncGenerator[bytes, None], intake: Intake, name: str, out: BinaryIO) -> None:
    total, piece = 0, bytearray()
    async for chunk in body:
        total += len(chunk)
        intake.check_size(name, total)
        piece += chunk
        if len(piece) >= _PIECE:
            await run_in_threadpool(out.write, bytes(piece))
            piece.clear()
    out.write(bytes(piece))
    out.flush()
    await run_in_threadpool(os.fsync, out.fileno())


async def _drain(body: AsyncGenerator[bytes, None]) -> None:
    left = _DRAINED
    with suppress(ClientDisconnect):
        async for chunk in body:
            left -= len(chunk)
            if left < 0:
                return
