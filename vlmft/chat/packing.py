"""Questions about the same pictures in one sequence: what they have in common once, then each question as a branch.

A pair (DPO) is two branches, of its chosen and its rejected answer, and shares its prompt without pictures, too.

    tokens    [ prefix with the pictures ][ q1 a1 ][ q2 a2 ] …
    mask      a branch sees the prefix and itself, never a sibling
    position  every branch starts where the prefix ends

Each token meets exactly the tokens, at exactly the positions, that it meets in an ordinary row, so loss and gradients
are those of the ordinary rows. Any sequence of tokens is a pack: an ordinary row is one with a single branch.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from vlmft.chat.encode import IGNORED, Row
from vlmft.schema import Algorithm, Method, Packing

if TYPE_CHECKING:
    import torch

# Families whose packed rows the tests prove equal to ordinary ones, by `config.model_type`.
PROVEN = ("glm4v", "glm4v_moe", "qwen3_vl")
_PROVEN_FOR_PAIRS = (*PROVEN, "llama")  # which reads text alone: only a pair has something to share
_PADDING = 1.05  # padded over real tokens, that is little enough


@dataclass(frozen=True, slots=True)
class Pack:
    """Rows about the same pictures, the first `prefix` tokens of all whose branches are the same.

    0 where nothing is shared: a row by itself, a pair as two sequences.
    """

    rows: tuple[Row, ...]
    prefix: int = 0

    @property
    def branches(self) -> tuple[Row, ...]:
        return tuple(branch for row in self.rows for branch in row.branches)

    @property
    def tokens(self) -> int:
        return self.prefix + sum(own_tokens(row, self.prefix) for row in self.rows)


def pack(rows: Sequence[Row], prefix: int) -> Pack:
    """The rows of a group that shares `prefix` tokens, or some of them; by itself a pair shares more of its own."""
    branches = [branch for row in rows for branch in row.branches]
    if len(rows) == 1 and prefix:
        prefix = common_prefix(branches) if len(branches) > 1 else 0
    return Pack(tuple(rows), prefix)


def own_tokens(row: Row, prefix: int) -> int:
    """What the row adds to a pack."""
    return sum(len(branch.input_ids) - prefix for branch in row.branches)


def questions_per_row(method: Method, family: str) -> int:
    """The most questions that may share a row: 1 without packing, and for a family that is not proven."""
    return method.max_questions_per_row if method.packing is Packing.image and proven(method, family) else 1


def proven(method: Method, family: str) -> bool:
    """Whether rows of the method may share sequences in a family."""
    return family in (_PROVEN_FOR_PAIRS if method.algorithm is Algorithm.dpo else PROVEN)


def groups(rows: Sequence[Row], image_token_id: int | None) -> list[tuple[list[int], int]]:
    """The positions of rows that can share a sequence, with the length of their prefix (0 for one sequence alone).

    The prefix holds every picture and no label, and ends before the last unlabelled token of each row: what predicts a
    row's first answer token is the row's own.
    """
    together: dict[Any, list[int]] = {}
    for number, row in enumerate(rows):
        end = _after_images(row, image_token_id)
        # One token after the pictures must be left for the branch to begin with.
        shared = 0 < end < _first_label(row)
        together.setdefault((row.images, _digest(row.input_ids[:end])) if shared else number, []).append(number)
    found = []
    for numbers in together.values():
        branches = [branch for number in numbers for branch in rows[number].branches]
        found.append((numbers, common_prefix(branches) if len(branches) > 1 else 0))
    return found


def _digest(ids: Sequence[int]) -> bytes:
    """Stands for a thousand image tokens in 16 bytes: large sets have hundreds of thousands of rows."""
    return blake2b(array("q", ids).tobytes(), digest_size=16).digest()


def common_prefix(rows: Sequence[Row]) -> int:
    """How many tokens the rows have in common, within what a prefix may hold."""
    lowest, highest = min(row.input_ids for row in rows), max(row.input_ids for row in rows)
    # Of the first and the last in order, every other row has what the two have in common.
    shared = next((n for n, pair in enumerate(zip(lowest, highest, strict=False)) if pair[0] != pair[1]), len(lowest))
    return min(shared, *(_first_label(row) - 1 for row in rows))


def _after_images(row: Row, image_token_id: int | None) -> int:
    """The position after the last image token; 0 where there is none."""
    if not row.images or image_token_id is None:
        return 0
    return len(row.input_ids) - row.input_ids[::-1].index(image_token_id)


def _first_label(row: Row) -> int:
    """The position of the first labelled token; of the end, where the row is a prompt."""
    return next((n for n, label in enumerate(row.labels) if label != IGNORED), len(row.input_ids))


def lines_of(packs: Sequence[Pack]) -> list[list[Pack]]:
    """How packs are laid out: behind each other in lines, or where none shares anything every sequence by itself."""
    if any(pack.prefix for pack in packs):
        return into_lines(packs)
    return [[Pack((branch,))] for pack in packs for branch in pack.branches]


def in_order(packs: Sequence[Pack], lines: Sequence[Sequence[Pack]]) -> Sequence[Pack]:
    """The packs as `lines_of` has laid them out."""
    return [pack for line in lines for pack in line] if any(pack.prefix for pack in packs) else packs


def into_lines(packs: Sequence[Pack]) -> list[list[Pack]]:
    """Packs put behind each other in lines of about equal length, so that little padding is left.

    As many lines as that allows: attention's cost grows with the square of a line's length.
    Packs of a line do not see each other.
    """
    total, longest = sum(pack.tokens for pack in packs), max(pack.tokens for pack in packs)
    best, least = [list(packs)], float("inf")
    for count in range(-(-total // longest), total // (2 * longest), -1):
        lines = _balanced(packs, count)
        padded = len(lines) * max(map(_tokens, lines)) / total
        if padded < least:
            best, least = lines, padded
        if padded <= _PADDING:
            break
    return best


def _balanced(packs: Sequence[Pack], count: int) -> list[list[Pack]]:
    """The packs in `count` lines, each put in the shortest one so far, the longest packs first."""
    lines: list[list[Pack]] = [[] for _ in range(count)]
    for pack in sorted(packs, key=lambda pack: -pack.tokens):
        min(lines, key=_tokens).append(pack)
    return [line for line in lines if line]


def _tokens(line: Sequence[Pack]) -> int:
    return sum(pack.tokens for pack in line)


def layout(lines: Sequence[Sequence[Pack]], width: int) -> Any:
    """Where each token of padded lines belongs: int64 of shape (5, B, width).

    0: number of its pack in the line, -1 for padding on the right. 1: 0 in a prefix, else the number of its branch
    from 1. 2, 3, 4: the places in the line at which its branch (or prefix) starts, the first branch of its pack (in a
    prefix: the prefix), and its pack.
    """
    import torch

    out = torch.zeros(5, len(lines), width, dtype=torch.int64)
    out[0] = -1
    out[2:] = torch.arange(width)  # padding is measured from itself
    for line, packs in enumerate(lines):
        for number, start, first, branch, here, end, _ in _branches(packs):
            if branch == 1:
                out[:, line, start:first] = torch.tensor([[number], [0], [start], [start], [start]])
            out[:, line, here:end] = torch.tensor([[number], [branch], [here], [first], [start]])
    return out


def places(lines: Sequence[Sequence[Pack]]) -> Iterator[tuple[int, Row, list[int]]]:
    """For each branch of the lines, in order: its line, the row it is, and the places of its tokens there."""
    for number, line in enumerate(lines):
        for _, start, first, _, here, end, row in _branches(line):
            yield number, row, [*range(start, first), *range(here, end)]


def _branches(packs: Sequence[Pack]) -> Iterator[tuple[int, int, int, int, int, int, Row]]:
    """For each branch of a line: the number of its pack, where that and its first branch start; its own
    number (from 1), where it starts and ends; and the row."""
    start = 0
    for number, pack in enumerate(packs):
        here = first = start + pack.prefix
        for branch, row in enumerate(pack.branches, 1):
            end = here + len(row.input_ids) - pack.prefix
            yield number, start, first, branch, here, end, row
            here = end
        start = here


def attention_mask(layout: torch.Tensor) -> torch.Tensor:
    """Which keys each query sees: bool of shape (B, 1, T, T). Padding sees padding, since nothing at all is NaN."""
    import torch

    pack, branch = layout[0], layout[1]
    same_pack = pack[:, :, None] == pack[:, None, :]
    sees = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    causal = torch.ones(pack.shape[1], pack.shape[1], dtype=torch.bool, device=pack.device).tril()
    return (same_pack & sees & causal)[:, None]


def position_ids(model: Any, batch: dict[str, Any], layout: torch.Tensor) -> torch.Tensor:
    """The position every token has in its ordinary row: (3, B, T) for M-RoPE, else (B, T), int64.

    The model's own rule numbers the line from end to end; text goes on by ones, so that differences within a branch
    are right, and each branch is moved to where its prefix ends, and each pack to zero.
    """
    import torch

    width = layout.shape[-1]
    rope = find_rope_index(model)
    if rope is None or "image_grid_thw" not in batch:
        numbered = torch.arange(width, device=layout.device).expand(layout.shape[1:])
    else:
        numbered, _ = rope(
            batch["input_ids"],
            mm_token_type_ids=batch["mm_token_type_ids"],
            image_grid_thw=batch["image_grid_thw"],
            attention_mask=(layout[0] >= 0).long(),
        )
    start, first, pack = (index.expand(numbered.shape) for index in layout[2:])
    moved: torch.Tensor = numbered - numbered.gather(-1, start) + numbered.gather(-1, first) - numbered.gather(-1, pack)
    return moved


def find_rope_index(model: Any) -> Any:
    """The model's own rule for M-RoPE positions (`get_rope_index`), below an adapter too, or None where it has none."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for module in (base, getattr(base, "model", None)):
        if rule := getattr(module, "get_rope_index", None):
            return rule
    return None
