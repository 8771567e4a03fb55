"""Trees of values that refer to each other as the nodes of a graph, and the digest of such a graph.

The graph is refined as in the minimisation of automata: every node's colour is renewed from the colours of the nodes
that it refers to until no two nodes come apart any more. The digest therefore depends neither on where the traversal
began nor on whether equal parts are one object or several.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable
from typing import Any

import xxhash

Tree = bytes | int | tuple[bytes, list[Any]]  # a value, the number of a node, or a kind with parts
UNORDERED = b"unordered"  # the kind whose parts have no order


def digest(trees: list[Tree], root: Tree) -> bytes:
    """Return the digest of a graph: refine the colours of its nodes until no two nodes come apart any more."""
    targets = [_target(trees, number) for number in range(len(trees))]
    nodes = sorted(set(targets))
    colours = [b""] * len(trees)

    def recolour(colour: Callable[[int], bytes]) -> list[bytes]:
        renewed = {number: colour(number) for number in nodes}
        return [renewed[target] for target in targets]

    colours = recolour(lambda number: short_hash(mix(trees[number], None)))
    count = len(set(colours))
    while True:
        old = colours
        colours = recolour(lambda number, old=old: short_hash(old[number] + mix(trees[number], old)))  # type: ignore[misc]
        finer = len(set(colours))
        if finer == count:
            rules = sorted({(old[number], colours[number]) for number in nodes})
            return short_hash(short_hash(mix(root, old)) + b"".join(one + two for one, two in rules))
        count = finer


def _target(trees: list[Tree], number: int) -> int:
    """Return the node for this one: a wrapper that changes no result is what it wraps."""
    seen = {number}
    while isinstance(tree := trees[number], int) and tree not in seen:
        number = tree
        seen.add(number)
    return number


def plain_value(value: Any) -> bytes | None:
    """Return the bytes of a value that contains no other; None for everything else."""
    kind = type(value)
    if kind is str:
        return text_bytes(value)
    if kind is float:
        return b"f" + (struct.pack(">d", value) if not math.isnan(value) else b"nan")
    if kind is int:
        return b"i%x" % value if value >= 0 else b"i-%x" % -value
    if kind is bool or value is None or value is Ellipsis or value is NotImplemented:
        return b"c" + str(value).encode()
    if kind is bytes:
        return b"b" + (value if len(value) <= 32 else content_digest(value))
    if kind is complex:
        return b"z" + b"".join(plain_value(part) or b"" for part in (value.real, value.imag))
    return None


def text_bytes(text: str) -> bytes:
    """Return the bytes of a text; of a long one its length and digest."""
    raw = text.encode("utf-8", "surrogatepass")
    return b"s" + (raw if len(raw) <= 64 else b"\0%d" % len(raw) + content_digest(raw))


def content_digest(data: Any) -> bytes:
    """Return the xxh3-128 digest of a buffer."""
    return xxhash.xxh3_128_digest(data)


def pack(kind: bytes, parts: list[Any]) -> Tree:
    """Return a tree; its digest at once if it refers to no node."""
    tree = kind, parts
    return tree if any(not isinstance(part, bytes) for part in parts) else b"d" + mix(tree, None)


def mix(tree: Tree, colours: list[bytes] | None) -> bytes:
    """Return the digest of a tree, with the colours of the nodes that it refers to."""
    if isinstance(tree, bytes):
        return tree
    if isinstance(tree, int):
        return b"n" + colours[tree] if colours is not None else b"n"
    kind, parts = tree
    mixed = [mix(part, colours) for part in parts]
    if kind is UNORDERED:
        mixed.sort()
    digest = hashlib.blake2b(b"%d:%s" % (len(kind), kind), digest_size=16)
    for part in mixed:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()


def short_hash(data: bytes) -> bytes:
    """Return a 16-byte digest."""
    return hashlib.blake2b(data, digest_size=16).digest()
