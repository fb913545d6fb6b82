"""The rows of a JSON array or of JSON lines one after another, for files that are larger than memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from vlmft.data.sources import Unusable
from vlmft.errors import DataError

_WINDOW = 2**18  # characters read at a time
_BLANKS = re.compile(r"[ \t\n\r]*")
_END = 24  # characters that a number or a word may go on for
# What the decoder says of a text that is cut off. Any other complaint that is not about its very end is a defect.
_CUT = "Unterminated string"


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows that `read_rows` gives, with the same numbers and errors, holding no more than a few of them."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            start = file.read(_WINDOW)
            while start and not start.strip():
                start = file.read(_WINDOW)
            array = start.lstrip().startswith("[")
            if start and not array and not start.lstrip().startswith("{"):
                raise _broken(path, f"it begins with {start.strip()[:40]!r}")
            file.seek(0)
            yield from _of_array(path, file) if array else _of_lines(file)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}.") from None


def _of_lines(file: TextIO) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                row = Unusable(f"not JSON: {error}")
            yield number, row


def _of_array(path: Path, file: TextIO) -> Iterator[tuple[int, Any]]:
    decoder = json.JSONDecoder()
    text, place, number, ended = "", 0, 0, False

    def blanks() -> int:
        found = _BLANKS.match(text, place)
        return found.end() if found else place

    while True:
        # One element with what stands before it, "[" or ","; more is read until what follows it is there too.
        place = blanks()
        mark = text[place : place + 1]
        error = None
        if mark == "]":
            break
        if mark and mark != ("," if number else "["):
            raise _broken(path, f"expected {',' if number else '['!r} or ']' after row {number}, found {mark!r}")
        if mark:
            before, place = place, place + 1
            place = blanks()
            if not number and text[place : place + 1] == "]":
                break
            try:
                row, after = decoder.raw_decode(text, place)
                # A number that is cut off is a number too: "-1.5" of "-1.5e3".
                if ended or text[after : after + 1] in (",", "]") or after < len(text) - _END:
                    place, number = after, number + 1
                    yield number, row
                    continue
            except json.JSONDecodeError as found:
                error = found
                if not ended and error.pos < len(text) - _END and not error.msg.startswith(_CUT):
                    raise _broken(path, f"row {number + 1}: {error}") from None
            place = before
        if ended:
            raise _broken(path, f"row {number + 1}: {error}" if error else "it ends without ']'")
        more = file.read(max(_WINDOW, len(text) - place))  # twice as much each time, for a row of any length
        ended = not more
        text, place = text[place:] + more, 0
    rest = text[blanks() + 1 :] + file.read(_WINDOW)
    if rest.strip():
        raise _broken(path, f"something follows the array: {rest.strip()[:40]!r}")


def _broken(path: Path, why: str) -> DataError:
    return DataError(f"{path} is neither a JSON array nor JSON lines: {why}.")
