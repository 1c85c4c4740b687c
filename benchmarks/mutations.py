"""Files spoilt in every way that we could think of: bytes, headers, JSON, pickles. All is drawn from a seed.

Where a format has a structure, it is taken apart, changed in one place, and put together again, seal included: what is
merely damaged is refused at the door, and a fuzzer would never see the rooms behind.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import pickle
import pickletools
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from hfp import files

CANARY = "hostile_canary"
"""What hostile files try to import, call and touch."""

PATHS = ["../../../etc/passwd", "/etc/passwd", "a/../../b", "..\\..\\x", "\0", "con", "~/x", "x" * 5000, "", ".",
         "%s%n", "__class__", "__init__.__globals__", "\ud800", "\u202e", f"{CANARY}.py", "file:///x"]  # fmt: skip
VALUES: list[Any] = [None, True, False, 0, 1, -1, 2, 3, 7, 255, 2**31, 2**63, -(2**63), 10**18, 10**30, 0.5, -0.0,
                     1e308, float("nan"), float("inf"), "", "0", "1", [], {}, [[]], [None], {"a": {}}, [0] * 9,
                     "é" * 50, CANARY, "dense", "prune", "finetune", "control", "float32", "int64", "complex64",
                     *PATHS]  # fmt: skip
DTYPES = ["F16", "BF16", "F64", "I8", "U8", "I64", "BOOL", "F8_E4M3", "C64", "F4", "Q4", "", "f32", "U64", "F8_E8M0"]


# ---------------------------------------------------------------------------------------------- bytes


def raw(content: bytes, draws: random.Random) -> bytes:
    """One to three changes that know nothing of the format."""
    for _ in range(draws.randint(1, 3)):
        content = draws.choice(RAW)(content, draws)
    return content


def _place(content: bytes, draws: random.Random) -> int:
    """Anywhere, and more often near the beginning, where formats say what they are."""
    return draws.randrange(1 + min(len(content), 10 ** draws.randint(1, 7)))


def cut(content: bytes, draws: random.Random) -> bytes:
    return content[: _place(content, draws)]


def flip(content: bytes, draws: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draws.randint(1, 8) if changed else 0):
        changed[min(_place(content, draws), len(changed) - 1)] ^= 1 << draws.randrange(8)
    return bytes(changed)


def overwrite(content: bytes, draws: random.Random) -> bytes:
    place, length = _place(content, draws), draws.choice([1, 4, 8, 64, 512])
    filling = draws.choice([bytes(length), b"\xff" * length, draws.randbytes(length)])
    return content[:place] + filling + content[place + length :]


def insert(content: bytes, draws: random.Random) -> bytes:
    place = _place(content, draws)
    return content[:place] + draws.randbytes(draws.choice([1, 8, 100])) + content[place:]


def drop(content: bytes, draws: random.Random) -> bytes:
    place = _place(content, draws)
    return content[:place] + content[place + draws.choice([1, 8, 100]) :]


def repeat(content: bytes, draws: random.Random) -> bytes:
    place = _place(content, draws)
    return content[:place] + content[max(0, place - draws.choice([8, 100, 1000])) :]


def length(content: bytes, draws: random.Random) -> bytes:
    """Another length of the header."""
    claimed = draws.choice(
        [0, 1, 2**62, 2**63, 2**64 - 1, len(content), max(0, len(content) - 8), draws.randrange(4096)]
    )
    return struct.pack("<Q", claimed) + content[8:]


RAW: list[Callable[[bytes, random.Random], bytes]] = [cut, flip, flip, overwrite, insert, drop, repeat, length]


# ---------------------------------------------------------------------------------------------- JSON


def odd(draws: random.Random) -> Any:
    """One of VALUES; a copy, since it may be changed further."""
    return copy.deepcopy(draws.choice(VALUES))


def json_tree(tree: Any, draws: random.Random) -> Any:
    """A copy with one to three entries replaced, renamed, removed or added."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draws.randint(1, 3)):
        tree = _json_once(tree, draws)
    return tree


def _json_once(tree: Any, draws: random.Random) -> Any:
    place = tree
    while isinstance(place, (dict, list)) and place:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draws.choice(keys)
        if not isinstance(place[key], (dict, list)) or not place[key] or draws.random() < 0.2:
            break
        place = place[key]
    else:
        return odd(draws)
    what = draws.random()
    if what < 0.6:
        place[key] = _near(place[key], draws)
    elif what < 0.75:
        del place[key]
    elif isinstance(place, dict):
        place[draws.choice([*PATHS[:4], f"{key}~", str(odd(draws))[:50]])] = place.pop(key)
    else:
        place.insert(key, draws.choice([odd(draws), place[key]]))
    return tree


def _near(value: Any, draws: random.Random) -> Any:
    """Another value, often one of the same kind."""
    if draws.random() < 0.5 or isinstance(value, (dict, list)) or value is None:
        return odd(draws)
    if isinstance(value, str):
        place = draws.randrange(1 + len(value))
        return value[:place] + draws.choice(["", "0", "1", "x", "\0", value]) + value[place + 1 :]
    if isinstance(value, bool):
        return not value
    return value + draws.choice([1, -1, value, -2 * value, 10**6, 0.5])


def json_text(text: str, draws: random.Random) -> str:
    """What no tree shows: depth, duplicate keys, numbers of a million digits, text that is no JSON."""
    kind = draws.randrange(6)
    if kind == 0:
        return draws.choice(["[", '{"a":', "[{"]) * draws.choice([100, 5000, 100_000])
    if kind == 1:
        place = text.find("{") + 1
        return text[:place] + f'"{draws.choice(["format", "kind", "state", "lr", "hfp"])}": 7, ' + text[place:]
    if kind == 2:
        return text.replace(draws.choice("0123456789"), draws.choice(["9" * 6000, "1e999", "-", "NaN", "0x1"]), 1)
    if kind == 3:
        return text.replace('"', draws.choice(["'", '\\"', "\u201c", '"\\ud800']), draws.randint(1, 9))
    if kind == 4:
        return raw(text.encode("utf8", "replace"), draws).decode("utf8", "replace")
    return json.dumps(odd(draws))


def json_file(content: bytes, draws: random.Random) -> bytes:
    if draws.random() < 0.3:
        return raw(content, draws)
    if draws.random() < 0.3:
        return json_text(content.decode(), draws).encode("utf8", "replace")
    return json.dumps(json_tree(json.loads(content), draws)).encode()


def json_lines(content: bytes, draws: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    place = draws.randrange(len(lines))
    lines[place] = json_file(lines[place], draws)
    return b"".join(lines)


# ---------------------------------------------------------------------------------------------- safetensors


def safetensors(content: bytes, draws: random.Random) -> bytes:
    """Bytes, the header, what hfp says in it, or the numbers; most often with a seal that is right."""
    if draws.random() < 0.25:
        return raw(content, draws)
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    said = header.get("__metadata__", {})
    what = draws.random()
    if what < 0.25:
        header = tensor_entry(header, draws)
    elif what < 0.75 and files.HEADER in said:
        tree = said[files.HEADER]
        header["__metadata__"][files.HEADER] = (
            json_text(tree, draws) if draws.random() < 0.2 else json.dumps(json_tree(json.loads(tree), draws))
        )
    elif what < 0.85:
        data = draws.choice([overwrite, flip])(data, draws)
    elif what < 0.92:
        place = draws.choice(range(0, max(1, len(data) - 4), 4))
        data = data[:place] + struct.pack("<f", draws.choice([float("nan"), float("inf"), 1e38])) + data[place + 4 :]
    else:
        header = json_tree(header, draws)
    return sealed(header, data) if draws.random() < 0.85 else packed(header, data)


def tensor_entry(header: dict[str, Any], draws: random.Random) -> dict[str, Any]:
    """One tensor of another name, dtype, shape or place."""
    names = [name for name in header if name != "__metadata__"]
    name = draws.choice(names)
    entry = dict(header[name])
    what = draws.randrange(5)
    if what == 0:
        return {draws.choice(PATHS) if key == name else key: value for key, value in header.items()}
    if what == 1:
        entry["dtype"] = draws.choice(DTYPES)
    elif what == 2:
        shape = list(entry["shape"])
        entry["shape"] = draws.choice([shape[::-1], [*shape, 1], shape[1:], [2**62, 4], [0], [-1], [1] * 500, [0.5]])
    elif what == 3:
        begin, end = entry["data_offsets"]
        entry["data_offsets"] = draws.choice([[end, begin], [begin, 2**63], [0, 0], [begin - 4, end], [begin, end + 4]])
    else:
        return {key: value for key, value in header.items() if key != name} | {"more": entry}
    return header | {name: entry}


def packed(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def sealed(header: Any, data: bytes) -> bytes:
    """With the seal that belongs to it, where it can have one."""
    content = packed(header, data)
    said = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(said, dict) or files.SEAL not in said:
        return content
    try:
        said[files.SEAL] = files.seal(str(said.get(files.HEADER, "")), load(content))
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError):  # no reader takes it
        return content
    return packed(header, data)


# ---------------------------------------------------------------------------------------------- pickles


class Harm:
    """An object whose unpickling runs something."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def named(module: str, name: str, argument: bytes = b"X\x01\x00\x00\x00x") -> bytes:
    """A pickle that calls what it names."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + argument + b"\x85R."


def hostile(draws: random.Random) -> bytes:
    """A pickle that would run code, or fill the memory, or never end."""
    many = b"\x8a\x05" + draws.choice([10**9, 10**10, 2**31]).to_bytes(5, "little")
    touch = pickle.dumps(f"touch {CANARY}", 2)[2:-1]
    return draws.choice(
        [
            named("os", "system", touch), named("posix", "system", touch), named("builtins", "exec", touch),
            named("__builtin__", "eval", touch), named(CANARY, "run"), named("torch", "load", touch),
            named("builtins", "bytearray", many), named("torch", "Tensor", many), named("torch", "FloatStorage", many),
            named("torch", "FloatTensor", many), named("collections", "Counter", many), named("torch", "Size", many),
            named("_codecs", "encode", touch), named("builtins", "getattr", touch), 
            named("torch._utils", "_rebuild_tensor_v2"),
            named("torch.serialization", "_get_layout", touch), named("torch", "device", touch),
            pickle.dumps(Harm(exec, f"open({CANARY!r}, 'w')"), 2), pickle.dumps(Harm(eval, "1"), 4),
            b"\x80\x02}K\x01" + b"2\x86" * 60 + b"K\x01s.", b"\x80\x02" + b"(" * 10**5 + b".", 
            b"\x80\x02" + b"]" * 10**5 + b".",
            b"(i" + f"os\nsystem\n(S'touch {CANARY}'\n".encode() + b".", b"\x82\x01.", b"",
        ]
    )  # fmt: skip


def archive(content: bytes, draws: random.Random) -> bytes:
    """An archive of torch.save or torch.export with one entry changed, added, compressed or gone."""
    if draws.random() < 0.3 or content[:2] != b"PK":
        return raw(content, draws) if draws.random() < 0.6 else old_style(content, draws)
    with zipfile.ZipFile(io.BytesIO(content)) as source:
        entries = [(entry.filename, source.read(entry)) for entry in source.infolist()]
    chosen = [place for place, (name, _) in enumerate(entries) if name.endswith((".pkl", ".json", ".pt"))]
    place = draws.choice(chosen) if chosen and draws.random() < 0.7 else draws.randrange(len(entries))
    (name, inner), what, packing = entries[place], draws.random(), zipfile.ZIP_STORED
    if what < 0.35:
        entries[place] = name, json_file(inner, draws) if name.endswith(".json") else raw(inner, draws)
    elif what < 0.6:
        entries[place] = name, hostile(draws)
    elif what < 0.7:
        entries[place] = draws.choice([p for p in PATHS if p != "\ud800"]), inner
    elif what < 0.8:
        entries.insert(draws.choice([0, len(entries)]), (another(name, draws), hostile(draws)))
    elif what < 0.9:
        packing = zipfile.ZIP_DEFLATED
        entries[place] = name, inner + bytes(draws.choice([0, 10**6, 5 * 10**7]))
    else:
        del entries[place]
    made = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(made, "w", packing) as target:
        warnings.simplefilter("ignore", UserWarning)  # of two entries of one name
        for name, inner in entries:
            target.writestr(zipfile.ZipInfo(name), inner, packing)
    return made.getvalue()


def another(name: str, draws: random.Random) -> str:
    """A name for an entry that is not to be there: one that a reader might take for `name`, or another."""
    folder, _, rest = name.partition("/")
    usual = [f"{folder}/{each}" for each in ("x.pkl", "data.pkl", "../x", "data/9")]
    return draws.choice([*usual, name, f"{folder}/{rest.upper()}", f"{name}\0x"])


def old_style(content: bytes, draws: random.Random) -> bytes:
    """A hostile pickle before the content, or instead of one of those that the old format begins with."""
    place = 0
    with contextlib.suppress(ValueError, EOFError, IndexError):
        file = io.BytesIO(content)
        for _ in range(draws.randrange(6)):
            for _ in pickletools.genops(file):
                place = file.tell()
    if not place:
        return hostile(draws) + content[draws.randrange(99) :]
    rest = io.BytesIO(content[place:])
    with contextlib.suppress(ValueError, EOFError, IndexError):
        for _ in pickletools.genops(rest):
            pass
    return content[:place] + hostile(draws) + content[place + rest.tell() * draws.randint(0, 1) :]
