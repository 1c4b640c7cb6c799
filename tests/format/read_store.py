#!/usr/bin/env python3
"""Reads a store by FORMAT.md alone: none of the product's code, and none of its knowledge beyond that document.

    read_store.py STORE                     the restore points and their disks
    read_store.py STORE POINT DISK FILE     one disk, whole, into a file; DISK is its position in the point, from 0

What FORMAT.md tells a reader to check is checked; what does not hold ends the program with status 1 and a sentence.
Needs Python 3.9 or later, and the packages `blake3` and `zstandard`.
"""

import json
import struct
import sys
from pathlib import Path

from blake3 import blake3
from zstandard import ZstdDecompressor

BLOCK = 64 * 1024
FAN_OUT = 64
ID = 32
ABSENT = bytes(ID)
NODE = FAN_OUT * ID
MAX_PACK = 64 << 20

BLOCKS, NODES = 1, 2
STORED, ZSTD = 0, 1

HEADER = struct.Struct("<8sBBB5s")
ENTRY = struct.Struct("<32sIIIB3s")
FOOTER = struct.Struct("<32sIIBBB5s8s")
HASH_AT_FOOTER = 32


class Damaged(Exception):
    """Something is not as FORMAT.md says."""


def demand(holds, what):
    if not holds:
        raise Damaged(what)


class Pack:
    """One pack file: its index is checked when it is opened, each object when it is read."""

    def __init__(self, path):
        self.path = path
        data = path.read_bytes()
        demand(len(data) <= MAX_PACK, f"{path}: larger than a pack may be")
        demand(len(data) >= HEADER.size + FOOTER.size, f"{path}: too short for a pack")
        magic, version, kind, encryption, _salt = HEADER.unpack_from(data)
        demand((magic, version, encryption) == (b"ABDPACK1", 1, 0), f"{path}: not such a pack")
        footer = len(data) - FOOTER.size
        stated, at, count, version2, kind2, encryption2, zeros, magic = FOOTER.unpack_from(data, footer)
        demand((magic, zeros) == (b"ABDPEND1", bytes(5)), f"{path}: no footer")
        demand((version2, kind2, encryption2) == (version, kind, encryption), f"{path}: header and footer differ")
        demand(kind in (BLOCKS, NODES), f"{path}: kind {kind}")
        demand(at + count * ENTRY.size == footer, f"{path}: the index does not end where the footer begins")
        found = blake3(data[at:footer] + data[footer + HASH_AT_FOOTER :]).digest()
        demand(found == stated, f"{path}: the index is damaged")
        self.kind, self.data = kind, data
        self.entries = [ENTRY.unpack_from(data, at + i * ENTRY.size) for i in range(count)]
        end = HEADER.size
        for _, offset, sealed, plain, codec, zeros in sorted(self.entries, key=lambda entry: entry[1]):
            demand(offset == end, f"{path}: a gap or an overlap at byte {end}")
            demand(codec in (STORED, ZSTD) and zeros == bytes(3), f"{path}: codec {codec}")
            demand(0 < plain <= BLOCK, f"{path}: an object of {plain} bytes")
            end = offset + sealed
        demand(end == at, f"{path}: the index does not cover the pack")

    def check_name(self):
        demand(blake3(self.data).hexdigest() == self.path.name, f"{self.path}: not the pack that its name says")

    def open(self, entry):
        _, offset, sealed, plain_size, codec, _ = entry
        sealed = self.data[offset : offset + sealed]
        plain = sealed if codec == STORED else ZstdDecompressor().decompress(sealed, max_output_size=plain_size)
        demand(len(plain) == plain_size, f"{self.path}: an object at {offset} opens to another size")
        return plain


class Store:
    def __init__(self, root):
        self.root = Path(root)
        config = json.loads((self.root / "config.json").read_text())
        demand(config["format"] == "abd store" and config["version"] == 1, "not a store of version 1")
        demand(config["encryption"] == "none", f"encryption {config['encryption']} is not known to this reader")
        values = [config[name] for name in ("format", "version", "id", "id_key", "encryption")]
        text = "".join(f"{value}\n" for value in values)
        demand(blake3(text.encode()).hexdigest() == config["check"], "config.json is damaged")
        id_key = bytes.fromhex(config["id_key"])
        self.id = config["id"]
        self.keys = {
            what: blake3(id_key, derive_key_context=f"abd 2026-11 {context}").digest()
            for what, context in ((BLOCKS, "block id"), (NODES, "tree node id"), ("tree", "tree id"))
        }
        self.packs = [Pack(path) for path in sorted((self.root / "packs").glob("??/*"))]
        self.places = {}
        for pack in self.packs:
            pack.check_name()
            for entry in pack.entries:
                self.places.setdefault((pack.kind, entry[0]), (pack, entry))

    def hashed(self, what, data):
        return blake3(data, key=self.keys[what]).digest()

    def get(self, kind, wanted):
        """A block or a node, proven by its id."""
        demand((kind, wanted) in self.places, f"{'block' if kind == BLOCKS else 'node'} {wanted.hex()} is missing")
        pack, entry = self.places[kind, wanted]
        plain = pack.open(entry)
        demand(self.hashed(kind, plain) == wanted, f"{pack.path}: {wanted.hex()} is damaged")
        return plain

    def points(self):
        for path in sorted((self.root / "points").glob("*.json")):
            text = path.read_bytes()
            demand(blake3(text).hexdigest() == path.stem, f"{path}: damaged")
            point = json.loads(text)
            demand(point["version"] in (1, 2, 3), f"{path}: version {point['version']}")
            demand(point["store"] == self.id, f"{path}: of another store")
            yield path.stem, point

    def blocks(self, tree, tree_id):
        """The blocks of a disk that are not zeros, ascending: number and bytes."""
        size = tree["size"]
        root = bytes.fromhex(tree["root"]) if tree["root"] else ABSENT
        found = self.hashed("tree", struct.pack("<Q", size) + root)
        demand(found.hex() == tree_id, "the tree is not the one that its id says")
        count = -(-size // BLOCK)
        levels = 1
        while FAN_OUT**levels < count:
            levels += 1
        yield from self.walk(root, levels, 0, count, size)

    def walk(self, node, level, first, count, size):
        if node == ABSENT:
            return
        below = FAN_OUT ** (level - 1)
        children = self.get(NODES, node)
        demand(len(children) == NODE, f"node {node.hex()} has {len(children)} bytes")
        for at in range(FAN_OUT):
            child = children[at * ID : (at + 1) * ID]
            block = first + at * below
            if child == ABSENT:
                continue
            demand(block < count, f"node {node.hex()} has children past the end of the disk")
            if level > 1:
                yield from self.walk(child, level - 1, block, count, size)
                continue
            plain = self.get(BLOCKS, child)
            demand(len(plain) == min(BLOCK, size - block * BLOCK), f"block {block} has {len(plain)} bytes")
            yield block, plain


def main(arguments):
    if len(arguments) not in (1, 4) or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    store = Store(arguments[0])
    if len(arguments) == 1:
        for name, point in store.points():
            print(f"{name} {point['created']} {point['vm']['name']}")
            for at, disk in enumerate(point["disks"]):
                print(f"  {at} {disk['name']} {disk['tree']['size']} bytes, {disk['mode']}")
        return 0
    wanted, position, target = arguments[1], int(arguments[2]), arguments[3]
    named = [point for name, point in store.points() if name.startswith(wanted)]
    demand(len(named) == 1, f"{len(named)} restore points have an id that begins with {wanted}")
    disk = named[0]["disks"][position]
    with open(target, "wb") as file:
        file.truncate(disk["tree"]["size"])
        for block, plain in store.blocks(disk["tree"], disk["tree_id"]):
            file.seek(block * BLOCK)
            file.write(plain)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Damaged as damage:
        print(f"read_store: {damage}", file=sys.stderr)
        sys.exit(1)
