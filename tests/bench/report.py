"""What came out: medians, ratios, the targets, as a text, as JSON and as Markdown."""
import datetime
import os
import platform
import statistics
import sys

MIB = 1 << 20
ENGINE, WORKER = "abd engine", "abd worker+ADS"
# what | step | figure | against | most for the engine | most for worker and ADS
TARGETS = [
    ("full, CPU seconds, against restic", "full", "cpu_s", ("restic", "full"), 1 / 4, 1 / 3),
    ("full, wall, against rustic", "full", "wall_s", ("rustic", "full"), 1 / 3, 1 / 2),
    ("full, wall, against zstd -1 -T2 of the image", "full", "wall_s", ("zstd -1 -T2", "full"), 1.0, 1.5),
    ("unchanged, wall, against one pass of BLAKE3", "same", "wall_s", ("BLAKE3, 1 thread", "same"), 1.2, 1.5),
    ("2 % with bitmap, wall, against restic", "incr", "wall_s", ("restic", "incr"), 1 / 50, 1 / 25),
    ("restore, wall, against qemu-img of a zstd qcow2", "restore", "wall_s", ("qemu-img", "restore"), 0.7, 1.0),
]
ADDED_MOST = 1.1
PEAK_MOST = 64 * MIB
ONE_CPU_MOST = 2.2
THREE_LEAST = 0.9


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def machine():
    model = "unknown"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    with open("/proc/meminfo", encoding="utf-8") as file:
        memory = int(file.readline().split()[1]) // 1024
    system = platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    return {
        "processor": model, "processors": os.cpu_count(), "memory_mib": memory, "kernel": platform.release(), "system": system,
        "load_at_end": os.getloadavg(),
    }


def spread(values):
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def rows_of(rounds):
    """Medians of each program and step."""
    table = {}
    for name in dict.fromkeys(name for rows in rounds for name in rows):
        table[name] = {}
        for step in ("full", "same", "incr", "restore"):
            found = [rows[name][step] for rows in rounds if step in rows.get(name, {})]
            if found:
                figures = ("wall_s", "cpu_s", "peak_kib", "stored")
                table[name][step] = {f: spread([row[f] for row in found if row.get(f) is not None] or [0]) for f in figures}
    return table


def target(what, column, found, most=None, least=None, unit="", by_cpu=None):
    """One line of the table of targets; `found` are the ratios of the rounds, `by_cpu` the same ratios of CPU time."""
    line = {"what": what, "way": column, "most": most, "least": least, "unit": unit, "found": spread(found) if found else None}
    line["by_cpu"] = spread(by_cpu) if by_cpu else None
    if not found:
        line["verdict"] = "not measured"
    else:
        value = line["found"]["median"]
        line["verdict"] = "met" if (most is None or value <= most) and (least is None or value >= least) else "not met"
    return line


def ratios(rounds, name, step, figure, against):
    other, other_step = against
    pairs = [(rows.get(name, {}).get(step), rows.get(other, {}).get(other_step)) for rows in rounds]
    return [one[figure] / two[figure] for one, two in pairs if one and two]


def targets(bench, sparse):
    lines = []
    ways = ((ENGINE, 4), (WORKER, 5))
    for row in TARGETS:
        for name, at in ways:
            found, by_cpu = (ratios(bench.rounds, name, row[1], figure, row[3]) for figure in (row[2], "cpu_s"))
            lines.append(target(row[0], name, found, most=row[at], by_cpu=by_cpu))
    ideal = bench.facts["changed_zstd1_bytes"]
    for name, _ in ways:
        added = [rows[name]["incr"]["stored"] / ideal for rows in bench.rounds if "incr" in rows.get(name, {})]
        lines.append(target("2 % with bitmap, bytes added, against zstd -1", name, added, most=ADDED_MOST))
    # A peak is a bound: the highest of all rounds counts, not their median.
    peaks = [w["used"]["peak_kib"] / 1024 for row in worker_rows(bench, sparse) for w in row["parts"]["workers"]]
    what = "worker's peak memory, MiB, at 2 TiB too"
    lines.append(target(what, WORKER, [max(peaks)] if peaks else [], most=PEAK_MOST / MIB, unit="MiB"))
    for name, _ in ways:
        pairs = [(row[name].get("one_cpu"), row[name]["two_cpus"]) for row in bench.extra]
        found = [one["wall_s"] / two["wall_s"] for one, two in pairs if one]
        lines.append(target("full, wall, one processor against two", name, found, most=ONE_CPU_MOST))
    found = [row[WORKER]["two_cpus"]["wall_s"] / row[WORKER]["three_at_once"]["wall_s"] for row in bench.extra]
    lines.append(target("full, throughput, three workers against one", WORKER, found, least=THREE_LEAST))
    return lines


def worker_rows(bench, sparse):
    rows = [row for rows in bench.rounds for row in rows.get(WORKER, {}).values()]
    rows += [row for extra in bench.extra for row in extra[WORKER].values()]
    return rows + ([sparse["full"], sparse["restore"]] if sparse else [])


def result(bench, chosen, sparse, commit):
    versions = {}
    for peer_class in chosen:
        peer = peer_class("/nonexistent")
        if peer.name not in bench.missing:
            versions[peer.name] = {"version": peer.version(), "settings": peer.settings}
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return {
        "when": stamp, "commit": commit, "machine": machine(), "disk": bench.facts, "programs": versions, "missing": bench.missing,
        "rounds": bench.rounds, "extra": bench.extra, "sparse": sparse,
        "medians": rows_of(bench.rounds), "targets": targets(bench, sparse),
    }


def seconds(figure):
    return f"{figure['median']:.2f}"


def range_of(figure):
    return f"{figure['least']:.2f}-{figure['most']:.2f}"


def row_cells(result_):
    for name, steps in result_["medians"].items():
        for step, row in steps.items():
            stored = f"{row['stored']['median'] / MIB:.1f}" if step != "restore" else ""
            peak = f"{row['peak_kib']['median'] / 1024:.0f}"
            yield name, step, seconds(row["wall_s"]), range_of(row["wall_s"]), seconds(row["cpu_s"]), peak, stored


def target_cells(result_):
    for line in result_["targets"]:
        bound = f"<= {line['most']:.3g}" if line["most"] is not None else f">= {line['least']:.3g}"
        found, spread_ = "", ""
        by_cpu = f"{line['by_cpu']['median']:.3f}" if line["by_cpu"] else ""
        if line["found"]:
            digits = 1 if line["unit"] else 3
            found = f"{line['found']['median']:.{digits}f}"
            spread_ = f"{line['found']['least']:.{digits}f}-{line['found']['most']:.{digits}f}"
        yield line["what"], line["way"], bound, found, spread_, by_cpu, line["verdict"]


STAGE_HEAD = ("ours, last round", "step", "bound", "CPU s of each stage")


def stage_cells(result_):
    """What the worker itself says its processor time went to."""
    for name, steps in (result_["rounds"] or [{}])[-1].items():
        for step, row in steps.items():
            for one in (one for job in row.get("parts", {}).get("jobs", []) for one in job.get("passes", [])):
                stages = ", ".join(f"{stage['stage']} {stage['cpu_s']:.2f}" for stage in one["stages"] if stage["cpu_s"] >= 0.005)
                yield name, step, one["bound"], stages


def aligned(head, cells, left):
    rows = [head, *cells]
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    lines = []
    for row in rows:
        words = [word.ljust(width) if at < left else word.rjust(width) for at, (word, width) in enumerate(zip(row, widths))]
        lines.append("  ".join(words).rstrip())
    return "\n".join(lines)


ROW_HEAD = ("program", "step", "wall s", "least-most", "CPU s", "peak MiB", "stored MiB")
TARGET_HEAD = ("target", "way", "bound", "found", "least-most", "by CPU", "verdict")


def text(result_):
    parts = [facts_line(result_), aligned(ROW_HEAD, row_cells(result_), 2)]
    for name, reason in result_["missing"].items():
        parts.append(f"{name}: {reason}")
    for name in (ENGINE, WORKER):
        cells = [(cell[0], *cell[2:]) for cell in target_cells(result_) if cell[1] == name]
        if any(cell[2] for cell in cells):
            parts.append(aligned((f"target, {name}", *TARGET_HEAD[2:]), cells, 1))
    if any(stage_cells(result_)):
        parts.append(aligned(STAGE_HEAD, stage_cells(result_), 4))
    return "\n\n".join(parts)


def facts_line(result_):
    machine_, disk = result_["machine"], result_["disk"]
    changed = disk["counts"]["changed_granules"]
    return (
        f"{result_['when']}, commit {result_['commit'] or 'unknown'}, {len(result_['rounds'])} rounds\n"
        f"{machine_['processor']}, {machine_['processors']} processors, {machine_['memory_mib']} MiB, {machine_['system']}, "
        f"kernel {machine_['kernel']}, load {machine_['load_at_end'][0]:.1f}\n"
        f"disk of {disk['size'] // MIB} MiB, seed {disk['seed']}, {changed} of {disk['counts']['granules']} granules changed, "
        f"v1 {disk['sha256']['v1.img'][:16]}, v2 {disk['sha256']['v2.img'][:16]}"
    )


def markdown(result_):
    def table(head, cells):
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in cells])

    programs = [(name, facts["version"] or "", facts["settings"]) for name, facts in result_["programs"].items()]
    programs += [(name, "", reason.splitlines()[0][:120]) for name, reason in result_["missing"].items()]
    return "\n\n".join([
        "# Benchmark of the data path", facts_line(result_).replace("\n", "  \n"),
        "## Targets", table(TARGET_HEAD, target_cells(result_)),
        "## Rows (medians)", table(ROW_HEAD, row_cells(result_)),
        "## Ours by stage, as the worker accounts for it", table(STAGE_HEAD, stage_cells(result_)),
        "## Programs", table(("program", "version", "settings"), programs),
    ]) + "\n"
