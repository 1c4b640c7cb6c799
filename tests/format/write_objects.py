#!/usr/bin/env python3
"""Writes a store by FORMAT.md alone, and every way in which an object of it can be wrong.

    write_objects.py DIRECTORY

What it writes is kept in the repository: DIRECTORY is orchestrator/crates/ads/tests/fixtures/golden, and the same bytes come
out each time. `store/` is a store with every kind of object and every version of a restore point; `store.json` says what its
disks hold. `busy/` is a store that others work with, and `busy.json` says what of it must stay and what may go. `defects/`
has one object each, and `defects.json` says which object it stands for and what a reader must say. `write_sealed.py` does the
same for what is encrypted.
Whoever changes the format has to change this by hand, and see what happens to stores that exist.

Needs Python 3.9 or later, and the package `blake3`.
"""

import hashlib
import json
import struct
import sys
from pathlib import Path

from blake3 import blake3

BLOCK = 65536
FAN_OUT = 64
ABSENT = bytes(32)
BLOCKS, NODES = 1, 2
STORED, ZSTD = 0, 1

STORE_ID = "5d1c3c60-4a0b-4f5e-9a39-0d9f5c1f7b01"
ID_KEY = bytes(range(32))


def key(context):
    return blake3(ID_KEY, derive_key_context=f"abd 2026-11 {context}").digest()


BLOCK_KEY, NODE_KEY, TREE_KEY = key("block id"), key("tree node id"), key("tree id")


def block_id(plain):
    return blake3(plain, key=BLOCK_KEY).digest()


def node_id(node):
    return blake3(node, key=NODE_KEY).digest()


def zstd_of_one_byte(byte, size):
    """A zstd frame of one run: made by hand, so that no version of a library decides about it."""
    assert 256 <= size <= 65536
    return struct.pack("<IBH", 0xFD2FB528, 0x60, size - 256) + (1 | 1 << 1 | size << 3).to_bytes(3, "little") + bytes([byte])


class Sealed:
    """An object of a pack: what it is called, what stands there, what it opens to."""

    def __init__(self, name, plain, codec=STORED, sealed=None):
        self.name, self.plain_size, self.codec = name, len(plain), codec
        self.sealed = plain if sealed is None else sealed


def block(plain):
    if len(set(plain)) == 1 and len(plain) >= 256:
        return Sealed(block_id(plain), plain, ZSTD, zstd_of_one_byte(plain[0], len(plain)))
    return Sealed(block_id(plain), plain)


def pack(kind, objects, **wrong):
    """A pack's bytes; `wrong` replaces parts of it."""
    salt = wrong.get("salt", b"salt%d" % kind)
    data = struct.pack("<8sBBB5s", b"ABDPACK1", 1, wrong.get("header_kind", kind), 0, salt)
    index = b""
    for at, one in enumerate(objects):
        offset = len(data) + wrong.get("shift", {}).get(at, 0)
        index += struct.pack("<32sIIIB3s", one.name, offset, len(one.sealed), one.plain_size, one.codec, bytes(3))
        data += one.sealed
    end = struct.pack(
        "<IIBBB5s8s",
        len(data),
        len(objects) + wrong.get("more_entries", 0),
        wrong.get("version", 1),
        kind,
        wrong.get("encryption", 0),
        bytes(5),
        wrong.get("magic", b"ABDPEND1"),
    )
    digest = blake3(index + end).digest()
    if wrong.get("hash"):
        digest = bytes([digest[0] ^ 1]) + digest[1:]
    return data + index + digest + end


def tree(blocks, count, name=block_id):
    """The nodes above blocks, given by number, of a disk of so many, children first; and the root."""
    level, nodes = {at: name(plain) for at, plain in blocks.items()}, []
    while True:
        above = {}
        for at, child in level.items():
            node = above.setdefault(at // FAN_OUT, bytearray(FAN_OUT * 32))
            node[at % FAN_OUT * 32 : at % FAN_OUT * 32 + 32] = child
        level = {at: node_id(bytes(node)) for at, node in above.items()}
        nodes += [bytes(above[at]) for at in sorted(above)]
        count = -(-count // FAN_OUT)
        if count <= 1:
            return nodes, level.get(0, ABSENT)


def tree_id(size, root):
    return blake3(struct.pack("<Q", size) + root, key=TREE_KEY).hexdigest()


def config(**changes):
    values = {"format": "abd store", "version": 1, "id": STORE_ID, "id_key": ID_KEY.hex(), "encryption": "none"}
    check = changes.pop("check", None)
    values.update(changes)
    text = "".join(f"{value}\n" for value in values.values())
    values["check"] = check or blake3(text.encode()).hexdigest()
    return json.dumps(values, indent=2).encode() + b"\n"


# The disks. The first has two levels, blocks that come twice, and a short last block; the second nothing; the third is
# shorter than a block.
DISKS = {
    "system": ((70 << 16) + 512, {0: b"\x11" * BLOCK, 1: b"\x11" * BLOCK, 63: b"\x22" * BLOCK, 64: b"\x33" * BLOCK, 70: b"abd " * 128}),
    "empty": (3 << 20, {}),
    "sector": (512, {0: bytes(range(256)) * 2}),
}


def content(size, blocks):
    whole = bytearray(size)
    for at, plain in blocks.items():
        whole[at * BLOCK : at * BLOCK + len(plain)] = plain
    return bytes(whole)


def point(version, disks, **changes):
    document = {
        "version": version,
        "job": f"00000000-0000-4000-8000-00000000000{version}",
        "run": "00000000-0000-4000-8000-0000000000ff",
        "created": f"2026-11-0{version}T10:20:30Z",
        "store": STORE_ID,
        "pool": {"uuid": "2c0f3ab7-3a39-4a54-b1a1-2d7b8b39b6aa", "name": "lab"},
        "vm": {"uuid": "a9b1f9b6-8c8b-4ba3-8f0e-2df2ee2cfa0c", "name": "web01", "metadata": {"vcpus_max": 2}},
        "disks": disks,
        "base": None,
    }
    if version >= 2:
        document.update(job_name="nightly", quiesced=True, checkpoint=False)
    document.update(changes)
    return json.dumps(document, indent=2).encode()


def disk(version, number, name, changes=None, block_name=block_id):
    size, blocks = DISKS[name]
    _, root = tree(blocks, -(-size // BLOCK), block_name)
    counts = dict.fromkeys(("planned", "moved", "zero", "unchanged", "known", "shipped", "sealed", "nodes"), 0)
    document = {
        "vdi": f"5c3b2d1e-0f9a-4b7c-8d6e-00000000000{number}",
        "name": name,
        "userdevice": number,
        "bootable": number == 0,
        "tree": {"size": size, "root": None if root == ABSENT else root.hex()},
        "tree_id": tree_id(size, root),
        "mode": "full",
        "reason": "its first backup",
        "counts": counts,
        "reference": None,
    }
    if version >= 2:
        document.update(kind="user", cause="first", base=None, suspect=[])
        counts.update(audited=0, mismatched=0, first_mismatch=None)
    if version >= 3:
        bad = [{"offset": 20 * BLOCK, "size": 512}] if name == "system" else []
        document["bad"] = {"bytes": 512 * len(bad), "count": len(bad), "ranges": bad}
    document.update(changes or {})
    return document


def write(root, name, data):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_store(root):
    write(root, "config.json", config())
    blocks = {block_id(plain): block(plain) for _, held in DISKS.values() for plain in held.values()}
    nodes = {}
    for size, held in DISKS.values():
        for node in tree(held, -(-size // BLOCK))[0]:
            nodes[node_id(node)] = Sealed(node_id(node), node)
    for kind, objects in ((BLOCKS, blocks), (NODES, nodes)):
        data = pack(kind, list(objects.values()))
        name = blake3(data).hexdigest()
        write(root, f"packs/{name[:2]}/{name}", data)
    expected = {}
    for version in (1, 2, 3):
        data = point(version, [disk(version, number, name) for number, name in enumerate(DISKS)])
        name = blake3(data).hexdigest()
        write(root, f"points/{name}.json", data)
        digests = [hashlib.sha256(content(*DISKS[disk])).hexdigest() for disk in DISKS]
        expected[name] = {"version": version, "sizes": [size for size, _ in DISKS.values()], "sha256": digests}
    newest = list(expected)[-1]
    write(root, f"pins/{newest}.json", json.dumps({"created": "2026-11-04T00:00:00Z", "note": "keep"}).encode())
    write(root, "gc/generation.json", json.dumps("7b0f0c57-6f5c-4f0e-8d0b-000000000001").encode())
    return expected


LEASE, SERVED = "0b9e6f1a-1f5c-4c3e-8a55-000000000001", "0b9e6f1a-1f5c-4c3e-8a55-000000000002"
CONDEMNED_AT = 1_793_700_000


def as_json(value):
    return json.dumps(value).encode()


def write_pack(root, kind, plains):
    objects = [block(plain) if kind == BLOCKS else Sealed(node_id(plain), plain) for plain in plains]
    data = pack(kind, objects)
    name = blake3(data).hexdigest()
    write(root, f"packs/{name[:2]}/{name}", data)
    return name


def write_busy(root):
    """A store in which a job, a client of a server and a collector that died are at work, and that was repaired."""
    write(root, "config.json", config())
    size, held = DISKS["system"]
    kept = write_pack(root, BLOCKS, held.values())
    write_pack(root, NODES, tree(held, -(-size // BLOCK))[0])
    points = []
    for version in (2, 3):
        data = point(version, [disk(version, 0, "system")])
        points.append(blake3(data).hexdigest())
        write(root, f"points/{points[-1]}.json", data)

    # What only a job needs that has not committed yet, and what nobody does.
    leased = {0: b"held" * 128}
    nodes, top = tree(leased, 1)
    uncommitted = [write_pack(root, BLOCKS, leased.values()), write_pack(root, NODES, nodes)]
    unneeded = write_pack(root, BLOCKS, [b"gone" * 128])
    lease = {"version": 1, "owner": "a job", "created": "2026-11-03T09:00:00Z", "trees": [{"size": 512, "root": top.hex()}]}
    for name, counter, record in ((LEASE, 7, lease), (SERVED, 1, {**lease, "owner": "a client", "trees": [], "holder": "ab" * 32})):
        write(root, f"leases/{name}.json", as_json(record))
        write(root, f"leases/{name}.counter", str(counter).encode())
    condemned = {"version": 1, "created": CONDEMNED_AT, "packs": [unneeded, kept], "leases": {LEASE: 7, SERVED: 1}}
    write(root, "condemned/5b0a3c62-6d0b-4f43-9a7e-000000000001.json", as_json(condemned))
    # Of a collector that died before he looked who is there.
    condemned = {"version": 1, "created": CONDEMNED_AT, "packs": [unneeded], "leases": None}
    write(root, "condemned/5b0a3c62-6d0b-4f43-9a7e-000000000002.json", as_json(condemned))
    write(root, "gc/generation.json", as_json("7b0f0c57-6f5c-4f0e-8d0b-000000000002"))
    write(root, "floor.json", as_json({"version": 1, "days": 30}))

    # A pack whose block was saved into another one, and which nobody has removed yet; a point that nobody has a copy of.
    whole = pack(BLOCKS, [block(held[70])], salt=b"saved")
    quarantined = blake3(whole).hexdigest()
    damaged = whole[:20] + b"?" + whole[21:]
    write(root, f"packs/{quarantined[:2]}/{quarantined}", damaged)
    write(root, f"quarantine/{quarantined}", damaged)
    write(root, f"quarantine/{'cd' * 32}.json", b"{")
    write(root, "quarantine/config.json", config()[:-10])
    write(root, "quarantine/lost.json", as_json({"version": 1, "points": points[:1]}))
    return {
        "kept": kept,
        "unneeded": unneeded,
        "uncommitted": uncommitted,
        "quarantined": quarantined,
        "lost": points[0],
        "whole": points[1],
        "condemned_at": CONDEMNED_AT,
        "floor_days": 30,
    }


def defects():
    """Name, what it is, its bytes, and words that a reader's complaint must have in it."""
    good, short = block(b"\x11" * BLOCK), block(b"abd " * 128)
    packs = {
        "cut-off": (pack(BLOCKS, [good, short])[:-1], "does not end with a footer"),
        "cut-to-nothing": (b"ABDPACK1", "too short"),
        "no-footer": (pack(BLOCKS, [good], magic=b"ABDPEND2"), "does not end with a footer"),
        "later-version": (pack(BLOCKS, [good], version=2), "version 2 is not known"),
        "unknown-kind": (pack(3, [good]), "kind 3 is not known"),
        "unknown-encryption": (pack(BLOCKS, [good], encryption=9), "encrypted in a way this version does not know"),
        "header-of-another-kind": (pack(BLOCKS, [good], header_kind=NODES), "header does not match"),
        "index-hash": (pack(BLOCKS, [good], hash=True), "its hash does not match"),
        "too-many-entries": (pack(BLOCKS, [good], more_entries=1), "does not fit"),
        "overlap": (pack(BLOCKS, [good, short], shift={1: -1}), "overlaps or leaves a gap"),
        "gap": (pack(BLOCKS, [good, short], shift={1: 1}), "overlaps or leaves a gap"),
        "unknown-codec": (pack(BLOCKS, [Sealed(good.name, b"x" * 300, 7)]), "codec 7"),
        "over-64-kib": (pack(BLOCKS, [Sealed(good.name, b"x" * (BLOCK + 1), ZSTD, good.sealed)]), "over 64 KiB"),
        "another-block": (pack(BLOCKS, [Sealed(good.name, b"abd " * 128)]), "is damaged"),
        "zeros": (pack(BLOCKS, [Sealed(block_id(bytes(512)), bytes(512))]), "all zeros"),
        "no-zstd-frame": (pack(BLOCKS, [Sealed(good.name, b"\x11" * BLOCK, ZSTD, b"nonsense")]), "zstd"),
        "opens-to-less": (pack(BLOCKS, [Sealed(good.name, b"\x11" * BLOCK, ZSTD, zstd_of_one_byte(0x11, 65535))]), "65535 bytes instead of 65536"),
        "short-node": (pack(NODES, [Sealed(node_id(b"\x11" * 512), b"\x11" * 512)]), "tree node has 512 bytes"),
        "block-as-node": (pack(NODES, [Sealed(block_id(b"\x11" * 2048), b"\x11" * 2048)]), "is damaged"),
    }
    configs = {
        "not-json": (b"{", "does not parse"),
        "another-format": (config(format="tar"), "its format is 'tar'"),
        "later-version": (config(version=2), "version 2"),
        "unknown-encryption": (config(encryption="rot13"), "encryption 'rot13'"),
        "check": (config(check="00" * 32), "its check does not match"),
        "damaged-key": (config().replace(b'"00010203', b'"01010203'), "its check does not match"),
        "short-key": (config(id_key="00"), "not 64 hex digits"),
        "no-uuid": (config(id="me"), "its id is no uuid"),
    }
    system = [disk(3, 0, "system")]
    other = [disk(3, 0, "system", {"tree_id": "01" * 32})]
    points = {
        "not-json": (b"{", "EOF"),
        "later-version": (point(9, system), "version 9 is not known"),
        "no-disks": (point(3, None), "invalid type"),
        "no-hex": (point(3, [disk(3, 0, "system", {"tree_id": "x"})]), "not an id of 64 hexadecimal digits"),
        "another-tree": (point(3, other), "tree"),
        "a-missing-node": (point(3, [disk(3, 0, "system", missing_root())]), "is not in the store"),
    }
    for what, group in (("pack", packs), ("config", configs), ("point", points)):
        for name, (data, says) in group.items():
            yield what, name, data, says


def missing_root():
    size = 512
    return {"tree": {"size": size, "root": "ab" * 32}, "tree_id": tree_id(size, b"\xab" * 32)}


def main(arguments):
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    root = Path(arguments[0])
    expected = write_store(root / "store")
    write(root, "store.json", json.dumps(expected, indent=2).encode() + b"\n")
    write(root, "busy.json", json.dumps(write_busy(root / "busy"), indent=2).encode() + b"\n")
    table = []
    for what, name, data, says in defects():
        file = f"{what}-{name}"
        write(root / "defects", file, data)
        table.append({"what": what, "file": file, "says": says})
    write(root, "defects.json", json.dumps(table, indent=2).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
