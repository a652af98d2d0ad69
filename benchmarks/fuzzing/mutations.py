"""Damage to a file that keeps enough of its structure to reach what is behind the first check."""

import io
import json
import random
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import PurePath

import numpy as np

Damage = Callable[[bytes, random.Random], bytes]

_NUMBERS = (
    "0", "-1", "-0.0", "1", "2", "7", "0.5", "1e-320", "1e308", "1e400", "nan", "inf", "-inf", "NaN", "Infinity",
    str(2**31), str(2**63), str(-(2**63) - 1), str(10**30), "9" * 5000, "1_0", " 1", "٣", "0x10", "true", "",
)  # fmt: skip
_VALUES = (
    None, True, False, 0, -1, 1, 2, 3, 0.0, 0.5, -0.5, 1.5, 1e308, 1e-320, float("nan"), float("inf"), 2**31, 2**63,
    10**30, 10**400, "", "a", "0.5", "nan", "\x00", "\ud800", "é\u2028", [], [1], [[]], ["a", "b"], [0.5, float("nan")],
    {}, {"a": 1}, {"0": {}}, "gaussian", "cascade", "fixed", "to_radius", "top_k",
)  # fmt: skip
_DEEP = 100_000  # brackets, which no parser that calls itself gets through


def damage_of(path: PurePath) -> tuple[Damage, ...]:
    """What can be done to a file of this name beside changing bytes."""
    if path.suffix in (".tsv", ".csv", ".jsonl", ".txt", ".py"):
        return (_text, _lines, _numbers)
    if path.suffix == ".safetensors":
        return (_safetensors,)
    if path.suffix == ".npz":
        return (_npz,)
    return (_json, _json, _lines, _numbers)


def damaged(content: bytes, kinds: tuple[Damage, ...], draw: random.Random) -> bytes:
    """The content after one to three damages."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        content = draw.choice((*kinds, *kinds, *kinds, _bytes))(content, draw)
    return content


def _bytes(content: bytes, draw: random.Random) -> bytes:
    """A byte changed, a piece cut out, doubled, overwritten or put in, or the end cut off."""
    if not content:
        return draw.randbytes(8)
    at = draw.randrange(len(content))
    end = min(len(content), at + draw.choice((1, 2, 4, 8, 64, 1000)))
    piece = content[at:end]
    put = draw.choice((b"", b"", piece * 2, bytes([piece[0] ^ 1 << draw.randrange(8)]) + piece[1:], bytes(len(piece)),
                       b"\xff" * len(piece), draw.randbytes(len(piece)), b"\r\n" + piece))  # fmt: skip
    return content[:at] + put + draw.choice((content[end:],) * 7 + (b"",))


def _text(content: bytes, draw: random.Random) -> bytes:
    """The letters of a text as another program writes them."""
    text = content.decode(errors="replace")
    return draw.choice((
        lambda: text.replace("\n", "\r\n").encode(),
        lambda: text.replace("\n", "\r").encode(),
        lambda: b"\xef\xbb\xbf" + content,
        lambda: text.encode("utf-16"),
        lambda: text.replace("\t", " ").encode(),
        lambda: text.replace("\t", ",").encode(),
        lambda: content.replace(b"\n", b"\n\n"),
        lambda: content.rstrip(b"\n"),
        lambda: content + b"\x00",
        lambda: content * 2,
    ))()  # fmt: skip


def _lines(content: bytes, draw: random.Random) -> bytes:
    """Lines doubled, left out, exchanged; cells of a line, or of all lines, exchanged or changed."""
    lines = content.split(b"\n")
    i, j = draw.randrange(len(lines)), draw.randrange(len(lines))
    what = draw.randrange(6)
    if what == 0:
        lines.insert(j, lines[i])
    elif what == 1:
        del lines[i]
    elif what == 2:
        lines[i], lines[j] = lines[j], lines[i]
    else:
        a, b, value = draw.randrange(99), draw.randrange(99), draw.choice(_NUMBERS).encode()
        for k in range(len(lines)) if what == 3 else [i]:
            cells = lines[k].split(b"\t")
            if what == 5:
                cells[a % len(cells)] = value
            else:
                x, y = a % len(cells), b % len(cells)
                cells[x], cells[y] = cells[y], cells[x]
            lines[k] = b"\t".join(cells)
    return b"\n".join(lines)


def _numbers(content: bytes, draw: random.Random) -> bytes:
    """A number of the text is another one, or a little more or less."""
    found = list(re.finditer(rb"-?\d+(?:\.\d+)?(?:e-?\d+)?", content))
    if not found:
        return content
    one = draw.choice(found)
    old = one[0].decode()
    near = [str(int(old) + step) for step in (-1, 1)] if re.fullmatch(r"-?\d{1,18}", old) else [old + "1", f"-{old}"]
    new = draw.choice((*near, *near, draw.choice(_NUMBERS)))
    return content[: one.start()] + new.encode() + content[one.end() :]


def _json(content: bytes, draw: random.Random) -> bytes:
    """A value of a JSON text exchanged, taken out, doubled under its name, or deeply nested."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return content
    places = _places(tree)
    if not places:
        return content
    node, key = draw.choice(places)
    what = draw.randrange(10)
    if what == 0:
        del node[key]
    elif what == 1:
        other, name = draw.choice(places)
        node[key] = json.loads(json.dumps(other[name]))
    elif what == 2:
        node[key] = "\0deep"
    elif what == 3:
        node[key] = [node[key]]
    elif what == 4 and isinstance(node[key], dict | list):
        node[key] = {} if isinstance(node[key], dict) else node[key] * draw.choice((2, 1000))
    elif what == 5 and isinstance(node, dict):
        node[f"{key}{draw.choice('x2 ')}"] = node.pop(key)
    else:
        node[key] = draw.choice(_VALUES)
    text = json.dumps(tree, indent=1)
    if what == 6 and isinstance(node, dict):
        name = json.dumps(key)
        text = text.replace(f"{name}:", f"{name}: {json.dumps(draw.choice(_VALUES))}, {name}:", 1)
    deep = draw.choice(("[", '{"a":')) * _DEEP + draw.choice(("", "]" * _DEEP))
    return text.replace('"\\u0000deep"', deep).encode(errors="replace")


def _places(tree: object) -> list[tuple]:
    """Every value of a JSON tree: what holds it, and under which key."""
    found = []
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        found += [(tree, key), *_places(tree[key])]
    return found


def _safetensors(content: bytes, draw: random.Random) -> bytes:
    """The header's length, its JSON, or the JSON inside its metadata, is another."""
    if len(content) < 8:
        return content
    (length,) = struct.unpack("<Q", content[:8])
    header, rest = content[8 : 8 + length], content[8 + length :]
    what = draw.randrange(8)
    if what == 0:
        told = draw.choice((0, 1, length - 1, length + 1, len(content), 2**31, 2**32, 2**63, 2**64 - 1, 10**8))
        return struct.pack("<Q", told % 2**64) + header + rest
    if what == 1:
        return content[:8] + header + _bytes(rest, draw)
    if what == 2:
        nan = struct.pack("<f", draw.choice((float("nan"), float("inf"), -1.0, 1e38)))
        at = 4 * draw.randrange(max(1, len(rest) // 4))
        return content[:8] + header + rest[:at] + nan + rest[at + 4 :]
    try:
        tree = json.loads(header)
        named = [key for key, value in tree["__metadata__"].items() if isinstance(value, str)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return content
    if what < 6 and named:
        key = draw.choice(named)
        tree["__metadata__"][key] = _json(tree["__metadata__"][key].encode(errors="replace"), draw).decode()
        header = json.dumps(tree).encode(errors="replace")
    elif what == 6:
        tensors = [one for one in tree.values() if isinstance(one, dict) and "data_offsets" in one]
        if tensors:
            one = draw.choice(tensors)
            one[draw.choice(("shape", "data_offsets"))] = draw.choice(
                ([], [0], [0, 0], [-1, 4], [2**63], [2**32, 2**32], [1, 2**64], [0, 2**63], one["shape"] * 2, [4, 0])
            )
        header = json.dumps(tree).encode()
    else:
        header = _json(header, draw)
    return struct.pack("<Q", len(header)) + header + rest


def _npz(content: bytes, draw: random.Random) -> bytes:
    """An array of the archive left out, doubled, of another shape or type, or under a header that lies."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        name = draw.choice(list(members))
    except Exception:
        return content
    what = draw.randrange(7)
    if what == 0:
        del members[name]
    elif what == 1:
        members[draw.choice(("other.npy", "allow_pickle.npy", "images", "../x.npy"))] = members[name]
    elif what == 2:
        other = draw.choice(list(members))
        members[name], members[other] = members[other], members[name]
    elif what == 3:
        members[name] = _bytes(members[name], draw)
    elif what == 4:
        members[name] = _npy(draw)
    else:
        members[name] = re.sub(
            rb"\((\d*),?([^)]*)\)",
            lambda match: draw.choice((b"(%d,%s)" % (draw.choice((0, 2, 10**5, 10**10, 2**62)), match[2]), b"()",
                                       b"(-1,)", b"(%s)" % (b"9," * 40))),
            members[name], count=1,
        )  # fmt: skip
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for one, data in members.items():
            archive.writestr(one, data)
    return packed.getvalue()


def _npy(draw: random.Random) -> bytes:
    """An array that is something else, or very large but for its packing."""
    made = draw.choice((
        np.zeros(()), np.zeros((0, 4, 4, 1), np.uint8), np.zeros(2 * 10**7, np.uint8), np.full(3, np.nan),
        np.asarray(["a", "b"]), np.asarray([2**63], np.uint64), np.zeros((3, 3), np.complex64), np.zeros(2, "M8[s]"),
        np.zeros(2, [("a", "i4")]), np.asarray([{}, []], object),
    ))  # fmt: skip
    stream = io.BytesIO()
    np.save(stream, made, allow_pickle=True)
    return stream.getvalue()
