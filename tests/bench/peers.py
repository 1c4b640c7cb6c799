"""The programs that are measured side by side: what each runs at each step.

A step is a list of words, or a text for a shell where something must be redirected. What a program cannot do is None:
zstd and qemu-img know no earlier backup, so for them v2 is everything again.
"""
import os
import shutil
import subprocess

PASSWORD = "bench"


def version_of(words):
    """The first line that a program says of itself."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else None


class Peer:
    """One program. `repo` is its directory, empty before `prepare`; `v1` and `v2` are the images."""

    name = ""
    program = ""
    version_words = ("--version",)
    settings = ""

    def __init__(self, place):
        self.repo = os.path.join(place, "repo")
        self.home = os.path.join(place, "home")
        self.env = dict(os.environ, HOME=self.home, XDG_CACHE_HOME=self.home, LC_ALL="C.UTF-8")

    def found(self):
        return shutil.which(self.program)

    def version(self):
        return version_of([self.found(), *self.version_words])

    def prepare(self):
        return None

    def full(self, v1):
        return None

    def same(self, v1):
        return None

    def incr(self, v2):
        return None

    def restore(self, v2, out):
        return None


class Zstd(Peer):
    name, program, settings = "zstd -1 -T2", "zstd", "the raw image, nothing but compression"

    def full(self, v1):
        return ["zstd", "-q", "-f", "-1", "-T2", "-o", f"{self.repo}/v1.zst", v1]

    def incr(self, v2):
        return ["zstd", "-q", "-f", "-1", "-T2", "-o", f"{self.repo}/v2.zst", v2]

    def restore(self, v2, out):
        return ["zstd", "-q", "-f", "-d", "-o", out, f"{self.repo}/v2.zst"]


class QemuImg(Peer):
    name, program, settings = "qemu-img", "qemu-img", "convert -c to qcow2, compression_type=zstd; v2 is everything again"
    words = ["qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", "-f", "raw"]

    def full(self, v1):
        return [*self.words, v1, f"{self.repo}/v1.qcow2"]

    def incr(self, v2):
        return [*self.words, v2, f"{self.repo}/v2.qcow2"]

    def restore(self, v2, out):
        return ["qemu-img", "convert", "-O", "raw", f"{self.repo}/v2.qcow2", out]


class Restic(Peer):
    name, program, settings = "restic", "restic", "defaults (encrypted); --force, else it does not read"
    version_words = ("version",)

    def __init__(self, place):
        super().__init__(place)
        self.env.update(RESTIC_PASSWORD=PASSWORD, RESTIC_REPOSITORY=self.repo, RESTIC_CACHE_DIR=self.home)

    def prepare(self):
        return ["restic", "-q", "init"]

    def full(self, v1):
        return ["restic", "-q", "backup", "--force", v1]

    same = incr = full

    def restore(self, v2, out):
        # It keeps the path below its target; the runner moves the file.
        return ["restic", "-q", "restore", "latest", "--include", v2, "--target", out + ".d"]


class Rustic(Peer):
    name, program, settings = "rustic", "rustic", "defaults (encrypted); --force, else it does not read"

    def __init__(self, place):
        super().__init__(place)
        self.env.update(
            RUSTIC_PASSWORD=PASSWORD, RUSTIC_REPOSITORY=self.repo, RUSTIC_CACHE_DIR=self.home, RUSTIC_NO_PROGRESS="true",
            RUSTIC_LOG_LEVEL="warn",
        )

    def prepare(self):
        return ["rustic", "init"]

    def full(self, v1):
        return ["rustic", "backup", "--force", v1]

    same = incr = full

    def restore(self, v2, out):
        return ["rustic", "restore", f"latest:{v2}", out]


class RusticFixed(Rustic):
    name, settings = "rustic-fixed1M", "chunks of a fixed 1 MiB (encrypted); --force"

    def prepare(self):
        return ["rustic", "init", "--set-chunker", "fixed_size", "--set-chunk-size", "1MiB"]


class Borg(Peer):
    name, program, settings = "borg", "borg", "-e none, chunks of a fixed 4 MiB, zstd,1; files cache disabled"
    chunker = "fixed,4194304"
    mode = "none"

    def __init__(self, place):
        super().__init__(place)
        self.env.update(BORG_BASE_DIR=self.home, BORG_REPO=self.repo, BORG_PASSPHRASE=PASSWORD)
        self.env.update(BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK="yes", BORG_RELOCATED_REPO_ACCESS_IS_OK="yes")

    def prepare(self):
        return ["borg", "init", "-e", self.mode]

    def create(self, name, image):
        return ["borg", "create", "--files-cache", "disabled", "--chunker-params", self.chunker, "-C", "zstd,1", f"::{name}", image]

    def full(self, v1):
        return self.create("full", v1)

    def same(self, v1):
        return self.create("same", v1)

    def incr(self, v2):
        return self.create("incr", v2)

    def restore(self, v2, out):
        return f"borg extract --stdout ::incr > '{out}'"


class Borg64K(Borg):
    name, settings = "borg-fixed64K", "-e none, chunks of a fixed 64 KiB, zstd,1; files cache disabled"
    chunker = "fixed,65536"


class Ours(Peer):
    """Our own data path; `way` is where the store is."""

    bitmap = ""
    bench = ""
    worker = ""
    options = []

    def __init__(self, place):
        super().__init__(place)
        self.trees = place

    def found(self):
        return self.bench

    def version(self):
        return version_of([self.bench, "--version"]) or "this tree"

    def words(self, command):
        words = [self.bench, command, "--way", self.way, "--store", self.repo, *self.options]
        return words + (["--worker", self.worker] if self.way == "worker" else [])

    def backup(self, images, name, *more):
        words = self.words("backup")
        for number, image in enumerate(images):
            words += ["--disk", image, "--tree", f"{self.trees}/{name}{number or ''}.tree"]
        return [*words, *more]

    def full(self, v1):
        return self.backup([v1], "v1")

    def same(self, v1):
        return self.backup([v1], "same", "--base", f"{self.trees}/v1.tree")

    def incr(self, v2):
        return self.backup([v2], "v2", "--base", f"{self.trees}/v1.tree", "--bitmap", self.bitmap)

    def restore(self, v2, out):
        return [*self.words("restore"), "--tree", f"{self.trees}/v2.tree", "--target", out]


class Engine(Ours):
    name, way, options = "abd engine", "engine", ["--believe"]
    settings = "read, hash, seal and pack in one process; packs are synced, and not verified"


class WithStore(Ours):
    name, way, settings = "abd engine+store", "engine", "worker and store in one process; what comes in is verified"


class Worker(Ours):
    name, way, settings = "abd worker+ADS", "worker", "worker process, TLS, ADS process; what comes in is verified"


class Pread(Engine):
    name, settings, options = "abd engine, pread", "the engine without io_uring", ["--believe", "--no-io-uring"]


class Floor(Peer):
    """One pass of BLAKE3 over v1 by one thread: the step that compares with it is the unchanged disk."""

    name, settings, bench = "BLAKE3, 1 thread", "reads and hashes, nothing else", ""

    def found(self):
        return self.bench

    def version(self):
        return "crate blake3"

    def same(self, v1):
        return [self.bench, "blake3", v1]


# In the order of a round: what is divided by each other stands close together.
ALL = [Zstd, QemuImg, Floor, Engine, Pread, WithStore, Worker, Restic, Rustic, RusticFixed, Borg, Borg64K]
OURS = (Engine, Worker)
OURS_TOO = (*OURS, Pread, WithStore)
