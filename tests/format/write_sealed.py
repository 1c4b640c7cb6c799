#!/usr/bin/env python3
"""Writes an encrypted store by FORMAT.md alone, and every way in which an object of it can be wrong.

    write_sealed.py DIRECTORY

As `write_objects.py`, and into the same directory: `sealed/` is an encrypted store with packs in both ciphers, one that a
collector filled, and restore points; `sealed.json` says what opens it and what its disks hold, `sealed-kit.txt` is its
recovery kit. `sealed-defects/` has one object each, and `sealed-defects.json` says which object it stands for, what a reader
with the key must say, and what one without; nothing where only the key can tell. `clear-...` stand in the store that is not
encrypted.

Keys and salts are fixed, so that the same bytes come out each time; in a store that is used, nothing but chance gives them.

Needs Python 3.9 or later, and the packages `blake3`, `cryptography` and `argon2-cffi`.
"""

import base64
import hashlib
import hmac
import json
import struct
import sys
from pathlib import Path

from argon2.low_level import Type, hash_secret_raw
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

sys.dont_write_bytecode = True

from write_objects import (  # noqa: E402
    BLOCK,
    BLOCKS,
    DISKS,
    NODES,
    STORED,
    ZSTD,
    Sealed,
    config,
    content,
    disk,
    missing_root,
    node_id,
    pack,
    point,
    tree,
    tree_id,
    write,
    zstd_of_one_byte,
)
from write_objects import STORE_ID as CLEAR_STORE  # noqa: E402

STORE_ID = "5d1c3c60-4a0b-4f5e-9a39-0d9f5c1f7b02"
OTHER_STORE = "5d1c3c60-4a0b-4f5e-9a39-0d9f5c1f7b03"
SLOT_ID = "0f3c2c9e-75a4-4a6f-9a52-0c1d5c2b7e12"
RECIPIENT_SLOT_ID = "0f3c2c9e-75a4-4a6f-9a52-0c1d5c2b7e13"
PASSPHRASE = "Grüße aus dem Tresor"
MASTER, OTHER_MASTER = bytes(range(100, 132)), bytes(range(101, 133))

AES, CHACHA = 1, 2
CIPHERS = {AES: ("AES-256-GCM", AESGCM), CHACHA: ("ChaCha20-Poly1305", ChaCha20Poly1305)}
DOCUMENT = "document key ChaCha20-Poly1305"

FORGED = "does not open with the store's key"


def derived(context, secret):
    return blake3(secret, derive_key_context=f"abd 2026-11 {context}").digest()


def encrypted(cipher, key, counter, plain, about):
    return CIPHERS[cipher][1](key).encrypt(counter.to_bytes(12, "little"), plain, about)


BLOCK_KEY = derived("secret block id", MASTER)
MASTER_CHECK = derived("master key check", MASTER).hex()


def block_id(plain):
    return blake3(plain, key=BLOCK_KEY).digest()


def compressed(plain):
    """The codec and the bytes, before anything is encrypted."""
    if len(set(plain)) == 1 and len(plain) >= 256:
        return ZSTD, zstd_of_one_byte(plain[0], len(plain))
    return STORED, plain


class Entry:
    """A block of a pack: its entry in the index, and its bytes as they stand there."""

    def __init__(self, plain, salt, counter, cipher=AES, name=None, master=MASTER):
        self.name, self.plain_size, self.counter = name or block_id(plain), len(plain), counter
        self.codec, bare = compressed(plain)
        key = derived(f"pack key {CIPHERS[cipher][0]}", master + salt)
        about = self.name + struct.pack("<IB", self.plain_size, self.codec)
        self.bytes = encrypted(cipher, key, counter, bare, about)

    def but(self, **changes):
        self.__dict__.update(changes)
        return self


def sealed_pack(table, entries, cipher=AES, **wrong):
    """A pack whose blocks are encrypted; `table` is for each segment its first entry and its salt."""
    kind = wrong.get("kind", BLOCKS)
    data = struct.pack("<8sBBB5s", b"ABDPACK1", 1, kind, wrong.get("header_cipher", cipher), b"salt%d" % cipher)
    index = b""
    for one in entries:
        numbers = (len(data), len(one.bytes), one.plain_size, one.codec)
        index += struct.pack("<32sIIIB3s", one.name, *numbers, one.counter.to_bytes(3, "little"))
        data += one.bytes
    keys = b"".join(struct.pack("<I32s", first, salt) for first, salt in table)
    segments = wrong.get("segments", len(table))
    end = struct.pack("<IIBBBIB8s", len(data) + len(keys), len(entries), 1, kind, cipher, segments, 0, b"ABDPEND1")
    digest = blake3(keys + index + end).digest()
    if wrong.get("damaged_table"):
        keys = keys[:-1] + bytes([keys[-1] ^ 1])
    return data + keys + index + digest + end


def salt(of):
    """32 bytes that look like what chance gives."""
    return blake3(f"salt {of}".encode()).digest()


def bech32(kind, data):
    """BIP 173, of whole bytes."""
    letters = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
    bits = "".join(f"{byte:08b}" for byte in data)
    bits += "0" * (-len(bits) % 5)
    words = [int(bits[at : at + 5], 2) for at in range(0, len(bits), 5)]
    check = 1
    for word in [ord(c) >> 5 for c in kind] + [0] + [ord(c) & 31 for c in kind] + words + [0] * 6:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ word
        for at, part in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= part * (top >> at & 1)
    words += [(check ^ 1) >> 5 * (5 - at) & 31 for at in range(6)]
    return f"{kind}1" + "".join(letters[word] for word in words)


def hkdf(secret, salt, info):
    return HKDF(SHA256(), 32, salt, info).derive(secret)


def unpadded(data):
    return base64.b64encode(data).rstrip(b"=")


IDENTITY = X25519PrivateKey.from_private_bytes(hashlib.sha256(b"identity").digest())


def age_file(plain):
    """age-encryption.org/v1, for one X25519 recipient and of less than one chunk."""
    file_key, nonce = bytes(range(16)), bytes(range(16, 32))
    drawn = X25519PrivateKey.from_private_bytes(hashlib.sha256(b"drawn for this file").digest())
    share, recipient = drawn.public_key().public_bytes_raw(), IDENTITY.public_key().public_bytes_raw()
    wrap = hkdf(drawn.exchange(IDENTITY.public_key()), share + recipient, b"age-encryption.org/v1/X25519")
    body = encrypted(CHACHA, wrap, 0, file_key, None)
    header = b"age-encryption.org/v1\n-> X25519 " + unpadded(share) + b"\n" + unpadded(body) + b"\n---"
    mac = hmac.digest(hkdf(file_key, b"", b"header"), header, "sha256")
    # A nonce of eleven bytes of a counter, big-endian, and one that says that the chunk is the last.
    chunk = ChaCha20Poly1305(hkdf(file_key, nonce, b"payload")).encrypt(bytes(11) + b"\x01", plain, None)
    return header + b" " + unpadded(mac) + b"\n" + nonce + chunk


def recipient_slot():
    recipient = bech32("age", IDENTITY.public_key().public_bytes_raw())
    values = {
        "version": 1,
        "id": RECIPIENT_SLOT_ID,
        "store": STORE_ID,
        "created": "2026-11-01T09:05:00.000Z",
        "label": "",
        "kind": "recipient",
        "recipient": recipient,
        "sealed": age_file(MASTER).hex(),
    }
    return slot_text(values)


def slot_text(values):
    values["check"] = blake3("".join(f"{value}\n" for value in values.values()).encode()).hexdigest()
    return json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n"


def slot(passphrase=PASSPHRASE, master=MASTER, about=None, **changes):
    """A slot's text; `changes` are members that have other values, with a check that is right."""
    values = {
        "version": 1,
        "id": SLOT_ID,
        "store": STORE_ID,
        "created": "2026-11-01T09:00:00.000Z",
        "label": "Schrank 2",
        "kind": "passphrase",
        "memory_kib": 64,
        "passes": 2,
        "lanes": 2,
        "salt": salt("slot")[:16].hex(),
    }
    key = hash_secret_raw(
        passphrase.encode(), bytes.fromhex(values["salt"]), time_cost=2, memory_cost=64, parallelism=2, hash_len=32, type=Type.ID, version=0x13
    )
    about = about or f"abd key slot\n{STORE_ID}\n{SLOT_ID}\n"
    values["sealed"] = encrypted(CHACHA, key, 0, master, about.encode()).hex()
    values.update(changes)
    return slot_text(values)


def kit(store=STORE_ID, master=MASTER, lines=(1, 2, 3, 4)):
    text = f"store  {store}\n"
    for number in lines:
        part = master[8 * number - 8 : 8 * number]
        check = derived("recovery kit line", f"{store}\n{number}\n".encode() + part)[:2]
        text += f"key {number}  {part[:4].hex()} {part[4:].hex()} {check.hex()}\n"
    return text.encode()


def sealed_config(**changes):
    return config(**{"id": STORE_ID, "encryption": "aead-1", "master_check": MASTER_CHECK, **changes})


def inside(version, **changes):
    """A restore point as it is before it is encrypted."""
    disks = [disk(version, number, name, None, block_id) for number, name in enumerate(DISKS)]
    return json.loads(point(version, disks, **{"store": STORE_ID, **changes}))


def sealed_point(document, outside=None, members=None, about=STORE_ID):
    """An encrypted restore point; `outside` replaces members that everybody sees, `members` those of `sealed`."""
    drawn = salt(f"point {document['created']}")
    plain, about = json.dumps(document).encode(), f"abd restore point\n{about}\n"
    sealed = encrypted(CHACHA, derived(DOCUMENT, MASTER + drawn), 0, plain, about.encode())
    seen = {name: document[name] for name in ("version", "store", "created", "base")}
    seen["disks"] = [{"tree": one["tree"], "tree_id": one["tree_id"]} for one in document["disks"]]
    seen["sealed"] = {"salt": drawn.hex(), "bytes": base64.b64encode(sealed).decode(), **(members or {})}
    seen.update(outside or {})
    return json.dumps(seen, indent=2).encode()


ELEVEN, TWENTY_TWO, THIRTY_THREE, TAIL = DISKS["system"][1][0], DISKS["system"][1][63], DISKS["system"][1][64], DISKS["system"][1][70]
SECTOR = DISKS["sector"][1][0]


def packs():
    """Both ciphers; and what a collector makes, without a key, of what is left of two packs: blocks keep salt and counter."""
    one, two, gone, gone_too = salt("one"), salt("two"), salt("gone"), salt("gone too")
    yield sealed_pack([(0, one)], [Entry(ELEVEN, one, 0), Entry(TAIL, one, 1)])
    yield sealed_pack([(0, two)], [Entry(TWENTY_TWO, two, 0, CHACHA)], CHACHA)
    moved = [Entry(THIRTY_THREE, gone, 1), Entry(ELEVEN, gone, 3), Entry(SECTOR, gone_too, 0)]
    yield sealed_pack([(0, gone), (2, gone_too)], moved)
    nodes = {}
    for size, held in DISKS.values():
        for node in tree(held, -(-size // BLOCK), block_id)[0]:
            nodes[node_id(node)] = Sealed(node_id(node), node)
    yield pack(NODES, list(nodes.values()))


def write_store(root):
    write(root, "config.json", sealed_config())
    write(root, f"keys/{SLOT_ID}.json", slot())
    write(root, f"keys/{RECIPIENT_SLOT_ID}.json", recipient_slot())
    for data in packs():
        name = blake3(data).hexdigest()
        write(root, f"packs/{name[:2]}/{name}", data)
    points = {}
    for version in (1, 2, 3):
        data = sealed_point(inside(version))
        name = blake3(data).hexdigest()
        write(root, f"points/{name}.json", data)
        digests = [hashlib.sha256(content(*DISKS[disk])).hexdigest() for disk in DISKS]
        points[name] = {"version": version, "sizes": [size for size, _ in DISKS.values()], "sha256": digests}
    identity = bech32("age-secret-key-", IDENTITY.private_bytes_raw()).upper()
    slots = {"slot": SLOT_ID, "identity": identity, "recipient_slot": RECIPIENT_SLOT_ID}
    return {"passphrase": PASSPHRASE, **slots, "points": points}


def bad_packs():
    """Name, bytes, what a reader with the key says, and what one without, who sees no more than the index."""
    drawn = salt("defect")
    table = [(0, drawn)]
    # Of no disk: what is wrong is the pack's own.
    one, other = b"one " * 128, b"two " * 128

    def two(cipher=AES, counters=(0, 1), **more):
        return [Entry(plain, drawn, counter, cipher, **more) for plain, counter in zip((one, other), counters)]

    def changed(at, **changes):
        entries = two()
        entries[at].but(**changes)
        return entries

    def flipped(at):
        whole = bytearray(two()[0].bytes)
        whole[at] ^= 1
        return bytes(whole)

    first, second = two()
    nonce = "the nonce of the block at"
    yield "swapped-blocks", sealed_pack(table, [first.but(bytes=second.bytes), two()[1].but(bytes=two()[0].bytes)]), FORGED, None
    first, second = two()
    names = first.name, second.name
    yield "swapped-names", sealed_pack(table, [first.but(name=names[1]), second.but(name=names[0])]), FORGED, None
    yield "changed-tag", sealed_pack(table, changed(0, bytes=flipped(-1))), FORGED, None
    yield "changed-byte", sealed_pack(table, changed(0, bytes=flipped(0))), FORGED, None
    yield "another-size", sealed_pack(table, changed(0, plain_size=511)), FORGED, None
    yield "another-codec", sealed_pack(table, changed(0, codec=ZSTD)), FORGED, None
    yield "wrong-counter", sealed_pack(table, changed(1, counter=9)), FORGED, None
    yield "another-salt", sealed_pack([(0, salt("another"))], two()), FORGED, None
    yield "another-cipher", sealed_pack(table, two(), CHACHA), FORGED, None
    yield "another-stores-key", sealed_pack(table, two(master=OTHER_MASTER)), FORGED, None
    yield "same-counter-twice", sealed_pack(table, two(counters=(0, 0))), nonce, nonce
    yield "counters-that-descend", sealed_pack(table, two(counters=(1, 0))), nonce, nonce
    yield "no-room-for-a-tag", sealed_pack(table, changed(1, bytes=bytes(15))), nonce, nonce
    for name, firsts in {"begins-at-1": (1,), "past-the-end": (0, 2), "twice-at-0": (0, 0), "descends": (0, 1, 1)}.items():
        # As many entries as it takes for there not to be too many segments.
        entries = two() + [Entry(one, drawn, 2)] * (len(firsts) - 2)
        says = f"a segment of its key table begins at entry {firsts[-1]}"
        yield f"key-table-{name}", sealed_pack([(at, drawn) for at in firsts], entries), says, says
    says = "it is encrypted and has no key table"
    yield "no-key-table", sealed_pack([], two()), says, says
    says = "an index of 2 entries at"
    yield "more-segments-than-entries", sealed_pack([(0, drawn), (1, drawn), (2, drawn)], two()), says, says
    yield "more-segments-than-room", sealed_pack(table, two(), segments=2**32 - 1), says, says
    says = "its hash does not match"
    yield "damaged-key-table", sealed_pack(table, two(), damaged_table=True), says, says
    says = "its header does not match its footer"
    yield "header-of-another-cipher", sealed_pack(table, two(), header_cipher=CHACHA), says, says
    yield "header-without-encryption", sealed_pack(table, two(), header_cipher=0), says, says
    says = "it holds nodes, and they are never encrypted"
    yield "encrypted-nodes", sealed_pack(table, two(), kind=NODES), says, says
    says = "its blocks are not encrypted, and the store is"
    yield "not-encrypted", pack(BLOCKS, [Sealed(block_id(one), one)]), says, says
    yield "another-block", sealed_pack(table, [Entry(other, drawn, 0, name=block_id(one))]), "is damaged: its bytes have the id", None
    yield "zeros", sealed_pack(table, [Entry(bytes(512), drawn, 0)]), "all zeros", None


def bad_slots():
    """Each stands in the place of the only slot. Whoever has the kit can verify, and without it all but what is sealed."""
    opens_not = "does not open its only key slot"
    cost = "no cost that this program pays"
    for name, changes in {
        "memory": {"memory_kib": (1 << 20) + 1},
        "passes": {"passes": 33},
        "lanes": {"lanes": 17},
        "no-memory": {"memory_kib": 15},
    }.items():
        yield f"cost-{name}", slot(**changes), cost, cost
    later, check = "version 2 is not known", "its check does not match"
    yield "later-version", slot(version=2), later, later
    yield "damaged", slot().replace(b'"Schrank 2"', b'"Schrank 3"'), check, check
    yield "damaged-key", slot().replace(b'"sealed": "', b'"sealed": "00', 1), check, check
    other_store = f"it belongs to store {OTHER_STORE}"
    yield "of-another-store", slot(store=OTHER_STORE), other_store, other_store
    named = f"it says that it is key slot {OTHER_STORE}"
    yield "of-another-name", slot(id=OTHER_STORE), named, named
    written = "it is not as it was written"
    yield "rewritten", json.dumps(json.loads(slot())).encode(), written, written
    yield "another-passphrase", slot(passphrase="another passphrase"), opens_not, None
    yield "moved-from-another-store", slot(about=f"abd key slot\n{OTHER_STORE}\n{SLOT_ID}\n"), opens_not, None
    yield "another-key", slot(master=OTHER_MASTER), "the key is not this store's", None


def bad_points():
    whole = inside(3)
    other = [{"tree": one["tree"], "tree_id": one["tree_id"]} for one in whole["disks"]][:2]
    differs = "what is encrypted in it says something else than what is not"
    opens_not = "what is encrypted in it " + FORGED
    bytes_of = json.loads(sealed_point(whole))["sealed"]["bytes"]
    sealed = bytearray(base64.b64decode(bytes_of))
    sealed[100] ^= 1
    yield "damaged", sealed_point(whole, members={"bytes": base64.b64encode(sealed).decode()}), opens_not, None
    yield "another-salt", sealed_point(whole, members={"salt": salt("another").hex()}), opens_not, None
    yield "short-salt", sealed_point(whole, members={"salt": "00"}), "its salt is not 64 hex digits", None
    yield "moved-from-another-store", sealed_point(whole, about=OTHER_STORE), opens_not, None
    yield "fewer-disks-outside", sealed_point(whole, {"disks": other}), differs, None
    yield "another-tree-outside", sealed_point(whole, {"disks": [other[1], other[0]]}), differs, None
    yield "another-time-outside", sealed_point(whole, {"created": "2026-11-09T10:20:30Z"}), differs, None
    yield "another-version-outside", sealed_point(whole, {"version": 2}), differs, None
    yield "another-base-outside", sealed_point(whole, {"base": "ab" * 32}), differs, None
    clear = "missing field `sealed`"
    yield "not-encrypted", json.dumps(whole).encode(), clear, clear
    later = "version 9 is not known"
    yield "later-version", sealed_point(dict(whole, version=9)), later, later
    gone, wrong = missing_root(), dict(whole["disks"][0], tree_id="01" * 32)
    yield "a-missing-node", sealed_point(dict(whole, disks=[dict(whole["disks"][0], **gone)])), "is not in the store", "is not in the store"
    says = f"its tree has the id {whole['disks'][0]['tree_id']}"
    yield "another-tree", sealed_point(dict(whole, disks=[wrong])), says, says


def bad_configs():
    check, pair = "its check does not match", "its master_check does not go with its encryption"
    other = derived("master key check", OTHER_MASTER).hex()
    yield "another-keys-check", sealed_config(master_check=other), "the key is not this store's", None
    yield "damaged-master-check", sealed_config().replace(MASTER_CHECK.encode(), other.encode()), check, check
    yield "no-master-check", config(id=STORE_ID, encryption="aead-1"), pair, pair
    yield "master-check-of-a-clear-store", sealed_config(encryption="none"), pair, pair
    short = "its master_check is not 64 hex digits"
    yield "short-master-check", sealed_config(master_check="00"), short, short


def bad_kits():
    slip = "line 'key 2' of the recovery kit has a slip in it"
    whole = kit()
    digit = whole.index(b"key 2") + 7
    yield "slip", whole[:digit] + b"f" + whole[digit + 1 :], slip, None
    yield "swapped-lines", whole.replace(b"key 2", b"key 0").replace(b"key 3", b"key 2").replace(b"key 0", b"key 3"), "slip in it", None
    yield "missing-line", kit(lines=(1, 2, 4)), "the recovery kit has no line 'key 3'", None
    yield "no-store", whole.split(b"\n", 1)[1], "the line 'store' of the recovery kit comes before the key", None
    yield "of-another-store", kit(store=OTHER_STORE), f"the recovery kit is that of store {OTHER_STORE}", None
    yield "another-key", kit(master=OTHER_MASTER), "the key is not this store's", None


def clear_packs():
    drawn = salt("defect")
    entries = [Entry(plain, drawn, counter) for counter, plain in enumerate((b"one " * 128, b"two " * 128))]
    says = "its blocks are encrypted, and the store is not"
    yield "encrypted", sealed_pack([(0, drawn)], entries), says, None
    yield "key-table", sealed_pack([(0, drawn)], entries, 0), "an index of 2 entries at", None
    yield "counters", sealed_pack([], entries, 0), "the nonce of the block at", None


def clear_points():
    whole = inside(3, store=CLEAR_STORE)
    yield "encrypted", sealed_point(whole, about=CLEAR_STORE), "missing field", None


def clear_slots():
    yield "in-a-clear-store", slot(store=CLEAR_STORE), "the store is not encrypted", None


def main(arguments):
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    root = Path(arguments[0])
    expected = write_store(root / "sealed")
    write(root, "sealed.json", json.dumps(expected, indent=2, ensure_ascii=False).encode() + b"\n")
    write(root, "sealed-kit.txt", kit())
    table = []
    groups = {"pack": bad_packs, "slot": bad_slots, "point": bad_points, "config": bad_configs, "kit": bad_kits}
    groups.update({"clear-pack": clear_packs, "clear-point": clear_points, "clear-slot": clear_slots})
    for what, defects in groups.items():
        for name, data, says, locked in defects():
            file = f"{what}-{name}"
            write(root / "sealed-defects", file, data)
            table.append({"what": what, "file": file, "says": says, "says_without_key": locked})
    write(root, "sealed-defects.json", json.dumps(table, indent=2).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
