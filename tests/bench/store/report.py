#!/usr/bin/env python3
"""Turns what abd-bench-store measured into tables. Usage: report.py DIR [--json FILE] [--markdown FILE]"""

import argparse
import datetime
import json
import os
import pathlib
import platform

# The store's budget, and what it is made of: blocks of 64 KiB.
BUDGET_TIB_PER_GIB = 100
BLOCKS_PER_TIB = (1 << 40) // (64 << 10)
# In a store each pack of about 400 blocks has a record and a name to find it by beside the index.
PACK_BYTES = 120
PACK_ENTRIES = 400
MIB = 1 << 20


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def us(part):
    return f"{part['cpu_us_each']:.2f} ({part['wall_us_each']:.2f})"


def ms(part):
    return f"{part['wall_s'] * 1000:.1f}"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def engine_row(one):
    n = one["entries"]
    return [
        one["engine"], f"{n:,}", us(one["insert"]), us(one["hit"]),
        us(one["repeated"]) if "repeated" in one else "", us(one["miss"]),
        f"{one['memory_building'] / MIB:.0f}", f"{one['memory_serving'] / MIB:.0f}", f"{one['disk'] / n:.1f}",
    ]


ENGINE_HEAD = ["engine", "entries", "insert", "hit", "hit, packs in order", "miss", "peak MiB", "serving MiB", "disk B each"]


def compare(found):
    own = found["compare-own"]
    text = ["## Beside embedded databases", "",
            "32 bytes of id to a place; µs of processor time each, wall time in brackets. The databases commit durably every "
            "16384 entries; ours syncs each run. LMDB's memory is its file, as far as it is mapped.", "",
            table(ENGINE_HEAD, [engine_row(found[f"compare-{name}"]) for name in ("own", "redb", "heed") if f"compare-{name}" in found])]
    rows = []
    for name in ("redb", "heed"):
        one = found.get(f"compare-{name}")
        if one:
            ratio = lambda what: f"{own[what]['cpu_us_each'] / one[what]['cpu_us_each']:.2f}"
            rows.append([one["engine"], ratio("insert"), ratio("hit"), ratio("miss"),
                         f"{own['disk'] / one['disk']:.2f}", f"{own['memory_serving'] / one['memory_serving']:.2f}"])
    text += ["", "Ours over theirs, processor time; below 1 ours needs less:", "",
             table(["", "insert", "hit", "miss", "disk", "serving memory"], rows), ""]
    return text


def large(found):
    one = found["large"]
    n = one["entries"]
    index = one["memory_index"]
    # What grows with the entries, apart from the bounded table and neighbourhood.
    each = one["memory_filters"] / n
    store_each = each + PACK_BYTES / PACK_ENTRIES
    tib_per_gib = (1 << 30) / each / BLOCKS_PER_TIB
    tib_with_packs = (1 << 30) / store_each / BLOCKS_PER_TIB
    return ["## Many entries", "", table(ENGINE_HEAD, [engine_row(one)]), "",
            f"Runs: {one['runs']}. Opening took {ms(one['open'])} ms, the first question, which reads the filters, "
            f"{ms(one['first question'])} ms. The index itself takes {index / MIB:.0f} MiB, {each:.2f} bytes an entry beside "
            "a table and a neighbourhood that do not grow.", "",
            f"Budget: {BUDGET_TIB_PER_GIB} TiB of distinct data for each GiB of memory. "
            f"{n:,} entries stand for {n / BLOCKS_PER_TIB:.1f} TiB of blocks of 64 KiB. Extrapolated from these: "
            f"**{tib_per_gib:.0f} TiB for each GiB** of filters, and {tib_with_packs:.0f} TiB with the list of packs that an "
            f"open store holds besides ({PACK_BYTES} bytes for each pack of {PACK_ENTRIES} blocks, computed). "
            + ("The budget is met." if tib_with_packs >= BUDGET_TIB_PER_GIB else
               "The budget is not met with blocks of 64 KiB: a filter of 8 bits takes 1.1 bytes an entry, and 100 TiB are "
               "1.68 billion of them."), ""]


def rebuild(found):
    one = found["rebuild"]
    lost, there = one["open without index"], one["open with index"]
    return ["## A store that is opened", "",
            f"{one['entries']:,} blocks in {one['packs']:,} packs; files in the page cache.", "",
            table(["", "wall s", "CPU s", "µs CPU each"], [
                ["index lost: every pack's end is read", f"{lost['wall_s']:.2f}", f"{lost['cpu_s']:.2f}", f"{lost['cpu_us_each']:.2f}"],
                ["index there", f"{there['wall_s']:.2f}", f"{there['cpu_s']:.2f}", f"{there['cpu_us_each']:.2f}"]]), "",
            f"Peak memory of the rebuild {one['memory_building'] / MIB:.0f} MiB, serving {one['memory_serving'] / MIB:.0f} MiB; "
            f"the index takes {one['index'] / one['entries']:.1f} bytes a block on disk.", ""]


def points(found):
    one = found["points"]
    rows = one["rows"]
    names = [("open", "open"), ("list", "list, first time"), ("list_again", "list"), ("show", "show one"),
             ("prune", "prune, dry run"), ("gc_dry_run", "gc, dry run")]
    head = ["ms of wall time"] + [f"{row['points']:,} points" for row in rows] + ["growth, last step"]
    body = []
    for key, name in names:
        walls = [row[key]["wall_s"] for row in rows]
        growth = ""
        if len(rows) > 1:
            growth = f"{walls[-1] / walls[-2]:.1f} times for {rows[-1]['points'] / rows[-2]['points']:.0f} times the points"
        body.append([name] + [f"{wall * 1000:.1f}" for wall in walls] + [growth])
    body.append(["commit one"] + [f"{row['commit']['wall_us_each'] / 1000:.2f}" for row in rows] + [""])
    body.append(["packs"] + [f"{row['packs']:,}" for row in rows] + [""])
    body.append(["nodes"] + [f"{row['nodes']:,}" for row in rows] + [""])
    remove, collect = one["remove"], one["collect"]
    return [f"## Many restore points of {one['vms']} VMs", "",
            "Each row in a store that was just opened; a point has 8 KiB of records of its VM, a disk, and two packs.", "",
            table(head, body), "",
            f"At the end nine of ten points were removed ({remove['count']:,}, {remove['wall_us_each'] / 1000:.2f} ms each) and "
            f"collected in {collect['wall_s']:.1f} s: {one['collected']:,} packs removed, {one['repacked']:,} written anew.", ""]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--markdown", type=pathlib.Path)
    arguments = parser.parse_args()
    found = {path.stem: json.loads(path.read_text()) for path in sorted(arguments.dir.glob("*.json"))}
    day = datetime.date.today().isoformat()
    load = os.getloadavg()
    text = [f"# The store's index and catalogue, {day}", "",
            f"`scripts/bench-store` on {os.cpu_count()} processors, {processor()}; load average at the end "
            f"{load[0]:.1f}. Processor time holds on a busy machine, wall time does not.", ""]
    for name, part in [("compare-own", compare), ("large", large), ("rebuild", rebuild), ("points", points)]:
        if name in found:
            text += part(found)
    text = "\n".join(text)
    print(text)
    if arguments.json:
        machine = {"processors": os.cpu_count(), "processor": processor(), "load": load, "day": day}
        arguments.json.write_text(json.dumps({"machine": machine, **found}, indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(text)


if __name__ == "__main__":
    main()
