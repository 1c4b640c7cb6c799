#!/usr/bin/env python3
"""Reads a store by FORMAT.md alone: none of the product's code, and none of its knowledge beyond that document.

    read_store.py STORE                     the restore points and their disks
    read_store.py STORE POINT DISK FILE     one disk, whole, into a file; DISK is its position in the point, from 0

The passphrase of an encrypted store is taken from ABD_STORE_PASSPHRASE; without it nothing of such a store is read.

What FORMAT.md tells a reader to check is checked; what does not hold ends the program with status 1 and a sentence.
Needs Python 3.9 or later, and the packages `blake3` and `zstandard`; for encrypted stores `cryptography` and `argon2-cffi`.
"""

import base64
import json
import os
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
TAG = 16
AES, CHACHA = 1, 2
PACK_KEYS = {AES: "abd 2026-11 pack key AES-256-GCM", CHACHA: "abd 2026-11 pack key ChaCha20-Poly1305"}

HEADER = struct.Struct("<8sBBB5s")
ENTRY = struct.Struct("<32sIIIB3s")
FOOTER = struct.Struct("<32sIIBBBIB8s")
SEGMENT = struct.Struct("<I32s")
HASH_AT_FOOTER = 32


class Damaged(Exception):
    """Something is not as FORMAT.md says."""


def demand(holds, what):
    if not holds:
        raise Damaged(what)


def derived(context, secret):
    return blake3(secret, derive_key_context=context).digest()


def decrypted(cipher, key, nonce, sealed, about, what):
    """The plain bytes; needs the package only where something is encrypted."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

    try:
        return (AESGCM if cipher == AES else ChaCha20Poly1305)(key).decrypt(nonce.to_bytes(12, "little"), sealed, about)
    except InvalidTag:
        raise Damaged(f"{what} does not open with this key") from None


class Slot:
    """A key slot that is for a passphrase."""

    MEMBERS = ("version", "id", "store", "created", "label", "kind", "memory_kib", "passes", "lanes", "salt", "recipient", "sealed")

    def __init__(self, path):
        text = path.read_text()
        self.path, self.slot = path, json.loads(text)
        values = [self.slot[name] for name in self.MEMBERS if name in self.slot]
        found = blake3("".join(f"{value}\n" for value in values).encode()).hexdigest()
        demand(found == self.slot["check"] and self.slot["version"] == 1, f"{path}: damaged")
        demand(json.dumps(self.slot, indent=2, ensure_ascii=False) + "\n" == text, f"{path}: not as it was written")
        demand(self.slot["id"] == path.stem, f"{path}: of another name")

    def open(self, passphrase):
        """The master key, or None."""
        from argon2.low_level import Type, hash_secret_raw

        slot = self.slot
        if slot["kind"] != "passphrase":
            return None
        demand(slot["memory_kib"] <= 1 << 20 and slot["passes"] <= 32 and slot["lanes"] <= 16, f"{self.path}: costs too much")
        key = hash_secret_raw(
            passphrase.encode(), bytes.fromhex(slot["salt"]), time_cost=slot["passes"], memory_cost=slot["memory_kib"],
            parallelism=slot["lanes"], hash_len=32, type=Type.ID, version=0x13,
        )
        about = f"abd key slot\n{slot['store']}\n{slot['id']}\n".encode()
        try:
            return decrypted(CHACHA, key, 0, bytes.fromhex(slot["sealed"]), about, str(self.path))
        except Damaged:
            return None


class Pack:
    """One pack file: its index is checked when it is opened, each object when it is read."""

    def __init__(self, path):
        self.path = path
        data = path.read_bytes()
        demand(len(data) <= MAX_PACK, f"{path}: larger than a pack may be")
        demand(len(data) >= HEADER.size + FOOTER.size, f"{path}: too short for a pack")
        magic, version, kind, encryption, _salt = HEADER.unpack_from(data)
        demand((magic, version) == (b"ABDPACK1", 1), f"{path}: not such a pack")
        footer = len(data) - FOOTER.size
        stated, at, count, version2, kind2, encryption2, segments, zero, magic = FOOTER.unpack_from(data, footer)
        demand((magic, zero) == (b"ABDPEND1", 0), f"{path}: no footer")
        demand((version2, kind2, encryption2) == (version, kind, encryption), f"{path}: header and footer differ")
        demand(kind in (BLOCKS, NODES), f"{path}: kind {kind}")
        demand(at + count * ENTRY.size == footer, f"{path}: the index does not end where the footer begins")
        demand(encryption == 0 and segments == 0 or kind == BLOCKS and encryption in PACK_KEYS, f"{path}: encryption {encryption}")
        blocks_end = at - segments * SEGMENT.size
        demand(segments <= count and blocks_end >= HEADER.size, f"{path}: {segments} segments")
        found = blake3(data[blocks_end:footer] + data[footer + HASH_AT_FOOTER :]).digest()
        demand(found == stated, f"{path}: the index is damaged")
        self.kind, self.encryption, self.data = kind, encryption, data
        keys = [SEGMENT.unpack_from(data, blocks_end + i * SEGMENT.size) for i in range(segments)]
        firsts = [first for first, _ in keys]
        demand(firsts == sorted(set(firsts)) and firsts[:1] == ([0] if encryption and count else []), f"{path}: its key table")
        self.entries, salt, last = [], None, -1
        for i in range(count):
            *entry, counter = ENTRY.unpack_from(data, at + i * ENTRY.size)
            counter = int.from_bytes(counter, "little")
            if keys and keys[0][0] == i:
                salt, last = keys.pop(0)[1], -1
            demand(counter > last if encryption else counter == 0, f"{path}: counter {counter}")
            self.entries.append((*entry, salt, counter))
            last = counter
        demand(not keys, f"{path}: a segment begins past the end")
        end = HEADER.size
        for _, offset, sealed, plain, codec, _, _ in sorted(self.entries, key=lambda entry: entry[1]):
            demand(offset == end, f"{path}: a gap or an overlap at byte {end}")
            demand(codec in (STORED, ZSTD), f"{path}: codec {codec}")
            demand(0 < plain <= BLOCK, f"{path}: an object of {plain} bytes")
            end = offset + sealed
        demand(end == blocks_end, f"{path}: the index does not cover the pack")

    def check_name(self):
        demand(blake3(self.data).hexdigest() == self.path.name, f"{self.path}: not the pack that its name says")

    def open(self, entry, master):
        wanted, offset, sealed, plain_size, codec, salt, counter = entry
        sealed = self.data[offset : offset + sealed]
        if self.encryption:
            key = derived(PACK_KEYS[self.encryption], master + salt)
            about = wanted + struct.pack("<IB", plain_size, codec)
            sealed = decrypted(self.encryption, key, counter, sealed, about, f"{self.path}: the block at {offset}")
        plain = sealed if codec == STORED else ZstdDecompressor().decompress(sealed, max_output_size=plain_size)
        demand(len(plain) == plain_size, f"{self.path}: an object at {offset} opens to another size")
        return plain


class Store:
    def __init__(self, root):
        self.root = Path(root)
        config = json.loads((self.root / "config.json").read_text())
        demand(config["format"] == "abd store" and config["version"] == 1, "not a store of version 1")
        self.encrypted = config["encryption"] == "aead-1"
        demand(self.encrypted or config["encryption"] == "none", f"encryption {config['encryption']} is not known to this reader")
        names = ("format", "version", "id", "id_key", "encryption") + ("master_check",) * self.encrypted
        values = [config[name] for name in names]
        text = "".join(f"{value}\n" for value in values)
        demand(blake3(text.encode()).hexdigest() == config["check"], "config.json is damaged")
        id_key = bytes.fromhex(config["id_key"])
        self.id = config["id"]
        self.keys = {
            what: blake3(id_key, derive_key_context=f"abd 2026-11 {context}").digest()
            for what, context in ((BLOCKS, "block id"), (NODES, "tree node id"), ("tree", "tree id"))
        }
        self.master = None
        if self.encrypted:
            slots = [Slot(path) for path in sorted((self.root / "keys").glob("*.json"))]
            found = filter(None, (slot.open(os.environ.get("ABD_STORE_PASSPHRASE", "")) for slot in slots))
            self.master = next(found, None)
            demand(self.master, "the passphrase in ABD_STORE_PASSPHRASE opens no key slot")
            check = derived("abd 2026-11 master key check", self.master).hex()
            demand(check == config["master_check"], "the key is not this store's")
            self.keys[BLOCKS] = derived("abd 2026-11 secret block id", self.master)
        self.packs = [Pack(path) for path in sorted((self.root / "packs").glob("??/*"))]
        self.places = {}
        for pack in self.packs:
            pack.check_name()
            demand(pack.kind == NODES or bool(pack.encryption) == self.encrypted, f"{pack.path}: encrypted in another way")
            for entry in pack.entries:
                self.places.setdefault((pack.kind, entry[0]), (pack, entry))

    def hashed(self, what, data):
        return blake3(data, key=self.keys[what]).digest()

    def get(self, kind, wanted):
        """A block or a node, proven by its id."""
        demand((kind, wanted) in self.places, f"{'block' if kind == BLOCKS else 'node'} {wanted.hex()} is missing")
        pack, entry = self.places[kind, wanted]
        plain = pack.open(entry, self.master)
        demand(self.hashed(kind, plain) == wanted, f"{pack.path}: {wanted.hex()} is damaged")
        return plain

    def points(self):
        for path in sorted((self.root / "points").glob("*.json")):
            text = path.read_bytes()
            demand(blake3(text).hexdigest() == path.stem, f"{path}: damaged")
            point = json.loads(text)
            if self.encrypted:
                point = self.opened(path, point)
            demand(point["version"] in (1, 2, 3), f"{path}: version {point['version']}")
            demand(point["store"] == self.id, f"{path}: of another store")
            yield path.stem, point

    def opened(self, path, outside):
        """The whole of a restore point."""
        key = derived("abd 2026-11 document key ChaCha20-Poly1305", self.master + bytes.fromhex(outside["sealed"]["salt"]))
        sealed = base64.b64decode(outside["sealed"]["bytes"], validate=True)
        point = json.loads(decrypted(CHACHA, key, 0, sealed, f"abd restore point\n{self.id}\n".encode(), str(path)))
        for name in ("version", "store", "created", "base"):
            demand(point[name] == outside[name], f"{path}: another {name} inside than outside")
        trees = [{"tree": disk["tree"], "tree_id": disk["tree_id"]} for disk in point["disks"]]
        demand(trees == outside["disks"], f"{path}: other disks inside than outside")
        return point

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
