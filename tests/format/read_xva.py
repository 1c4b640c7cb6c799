#!/usr/bin/env python3
"""Reads our template with programs that none of us wrote: tar, sha1sum and Python's XML-RPC.

  tests/format/read_xva.py TEMPLATE.xva DISK.img

Knows what XenServer's documents and exports of real pools say of an XVA, and nothing of our code. Prints one line of
JSON; the exit code is 1, with each fault named, where the file is not what an importer expects.
"""
import hashlib
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import xmlrpc.client

CHUNK = 1 << 20
CHUNK_NAME = re.compile(r"(Ref:[0-9]+)/([0-9]{8})")
# An importer of XenServer 6.5 refuses an export of a later version.
VERSIONS = {"export_vsn": 2, "xapi_major": 1}
CLASSES = {"VM", "VBD", "VDI", "SR"}

faults = []


def expect(condition, otherwise):
    if not condition:
        faults.append(otherwise)


def run(*words, cwd=None):
    return subprocess.run(words, cwd=cwd, check=True, capture_output=True, text=True).stdout


def check_members(names):
    """Order: the description, then chunk by chunk, each with its checksum behind it."""
    expect(names[:1] == ["ova.xml"], f"the first member is {names[:1]}, not ova.xml")
    chunks = names[1::2]
    for chunk, checksum in zip(chunks, names[2::2]):
        expect(CHUNK_NAME.fullmatch(chunk), f"{chunk} is not the name of a chunk")
        expect(checksum == f"{chunk}.checksum", f"{chunk} is followed by {checksum}")
    expect(len(names) % 2 == 1 and len(chunks) > 0, f"{len(names)} members")
    expect(chunks == sorted(chunks), "chunks do not ascend")
    return chunks


def check_sums(chunks, root):
    """By sha1sum itself, which reads "hash  name" lines."""
    lines = "".join(f"{(root / f'{chunk}.checksum').read_text()}  {chunk}\n" for chunk in chunks)
    done = subprocess.run(["sha1sum", "--check", "--strict", "--quiet"], cwd=root, input=lines, text=True, capture_output=True, check=False)
    expect(done.returncode == 0, f"sha1sum: {done.stdout}{done.stderr}")


def load(xml):
    """ova.xml is an XML-RPC value; around it goes what makes it an answer."""
    answer = f"<methodResponse><params><param>{xml[xml.index('<value>'):]}</param></params></methodResponse>"
    (value,), _ = xmlrpc.client.loads(answer)
    return value


def references(value):
    """Every text in a record that names an object of the file."""
    if isinstance(value, dict):
        for member in value.values():
            yield from references(member)
    elif isinstance(value, list):
        for member in value:
            yield from references(member)
    elif isinstance(value, str) and value.startswith("Ref:"):
        yield value


def check_objects(description):
    version = description["version"]
    for name, most in VERSIONS.items():
        expect(int(version[name]) <= most, f"{name} is {version[name]}, over {most}")
    objects = {item["id"]: item for item in description["objects"]}
    expect(len(objects) == len(description["objects"]), "an id stands there twice")
    expect({item["class"] for item in objects.values()} == CLASSES, f"classes {[item['class'] for item in objects.values()]}")
    for item in objects.values():
        for reference in references(item["snapshot"]):
            expect(reference in objects, f"{item['class']} {item['id']} names {reference}, which is not in the file")
    first = {item["class"]: item["snapshot"] for item in objects.values()}
    vm, vbd, vdi = first["VM"], first["VBD"], first["VDI"]
    expect(vm["is_a_template"] is True, "the VM is no template")
    expect(vm["VIFs"] == [], "an import would make a network for each VIF")
    expect(objects[vbd["VM"]]["class"] == "VM" and objects[vbd["VDI"]]["class"] == "VDI", "the VBD does not join VM and VDI")
    expect(vbd["userdevice"] == "0" and vbd["bootable"] is True, "the disk is not the one to boot")
    expect(vm["memory_static_max"] == vm["memory_dynamic_max"], "the memory is a range")
    return vm, vdi, vbd["VDI"]


def whole_disk(chunks, root, reference, size):
    """Chunks that are left out are zeros."""
    disk = bytearray(size)
    for chunk in chunks:
        owner, number = CHUNK_NAME.fullmatch(chunk).groups()
        expect(owner == reference, f"{chunk} belongs to no VDI")
        content = (root / chunk).read_bytes()
        expect(len(content) == CHUNK, f"{chunk} has {len(content)} bytes")
        at = int(number) * CHUNK
        disk[at : at + len(content)] = content
    expect(len(disk) == size, f"the chunks reach to {len(disk)}, the VDI to {size}")
    return bytes(disk)


def main():
    xva, image = (pathlib.Path(word).resolve() for word in sys.argv[1:3])
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        listed = run("tar", "--list", "--verbose", "--file", str(xva)).splitlines()
        expect(all(line.startswith("-") for line in listed), "not every member is a plain file")
        chunks = check_members(run("tar", "--list", "--file", str(xva)).splitlines())
        run("tar", "--extract", "--file", str(xva), cwd=root)
        check_sums(chunks, root)
        vm, vdi, reference = check_objects(load((root / "ova.xml").read_text(encoding="utf-8")))
        disk = whole_disk(chunks, root, reference, int(vdi["virtual_size"]))
    digest = hashlib.sha256(disk).hexdigest()
    expect(vm["other_config"].get("abd:digest") == digest, f"the disk's SHA-256 is {digest}, other_config says another")
    booted = image.read_bytes()
    expect(disk[: len(booted)] == booted and not any(disk[len(booted) :]), f"the disk is not {image.name}, padded with zeros")
    for fault in faults:
        print(f"read_xva: {fault}", file=sys.stderr)
    print(json.dumps({"name": vm["name_label"], "chunks": len(chunks), "size": len(disk), "sha256": digest}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
