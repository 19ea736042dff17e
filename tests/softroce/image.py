"""A guest's kernel and root file system, made from Debian packages by apt and dpkg alone; no root, no image registry.

Everything lies in one cache directory of the user: apt's lists and packages, and for each kernel the two files that
QEMU boots, `vmlinuz` and an initial file system that is the whole root. Removing the directory makes all of it anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIRROR = os.environ.get("LAB_DEBIAN_MIRROR", "http://deb.debian.org/debian")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
USERLAND_SUITE = "trixie"
"""Its pyverbs (56) has FLUSH and ATOMIC WRITE; it works with older and newer kernels too."""
KERNELS = {"6.1": "bookworm", "6.12": "trixie", "newest": "trixie-backports"}
"""Suites whose linux-image-amd64 (not the cloud kernel: that has no rdma_rxe) a guest can boot."""
PACKAGES = (
    "base-files", "busybox-static", "ibverbs-utils", "iproute2", "kmod", "perftest", "python3", "python3-pyverbs",
    "rdmacm-utils",
)  # fmt: skip
UNUSED = (
    "adduser", "debconf", "dpkg", "init-system-helpers", "libsystemd-shared", "passwd", "rdma-core", "systemd", "tar",
    "tzdata", "udev", "media-types", "mount", "pci.ids",
)  # fmt: skip
"""Dependencies that a guest without an init system never runs."""
MODULES = ("virtio_pci", "virtio_net", "virtio_console", "crc32_generic", "rdma_rxe", "ib_uverbs", "rdma_ucm")
"""A kernel that has one of them built in, or no longer knows it, is served all the same."""
PROGRAMS = {"apt-get": "apt", "dpkg-deb": "dpkg", "depmod": "kmod", "qemu-system-x86_64": "qemu-system-x86"}
"""What building and booting need, and the Debian package that has it."""
COMMAND_TIMEOUT_S = 600
LEFT_OUT = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian")


class ImageError(Exception):
    """The image can't be made; says what failed."""


@dataclass(frozen=True, slots=True)
class Image:
    """What QEMU is given: a kernel, and the parts of its initial file system, to be concatenated."""

    kernel: Path
    parts: tuple[Path, ...]


def missing_programs() -> str | None:
    """What the machine lacks and how to get it; None where nothing is missing."""
    for program, package in PROGRAMS.items():
        if shutil.which(program, path=_search_path()) is None:
            return f"needs {program} (apt-get install {package})"
    return None if KEYRING.is_file() else f"needs {KEYRING} (apt-get install debian-archive-keyring)"


def cache_directory() -> Path:
    """Where images are kept: ccm-lab/softroce in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ccm-lab" / "softroce"


def image(kernel: str) -> Image:
    """The image with `kernel` (a key of KERNELS); made when the cache doesn't have it, which needs a Debian mirror.

    Raises ImageError.
    """
    suite, cache = KERNELS[kernel], cache_directory()
    directory = cache / suite
    made = Image(directory / "vmlinuz", (_userland(cache), directory / "modules.cpio"))
    if not (made.kernel.exists() and made.parts[1].exists()):
        _make_kernel(cache, suite, made)
    return made


def _userland(cache: Path) -> Path:
    digest = hashlib.sha256("\0".join((USERLAND_SUITE, *PACKAGES, *UNUSED)).encode()).hexdigest()[:12]
    archive = cache / f"userland-{digest}.cpio"
    if archive.exists():
        return archive
    root = cache / "userland"
    shutil.rmtree(root, ignore_errors=True)
    for name in ("bin", "sbin", "lib"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    (root / "usr/lib64").mkdir()
    (root / "lib64").symlink_to("usr/lib64")
    for name in ("proc", "sys", "dev", "run", "tmp"):
        (root / name).mkdir()
    apt = Apt(cache, USERLAND_SUITE)
    for package in apt.download(PACKAGES):
        if package.name.split("_")[0] not in UNUSED:
            unpack(package, root)
    for name in LEFT_OUT:
        shutil.rmtree(root / name, ignore_errors=True)
    write_cpio(root, archive)
    shutil.rmtree(root)
    return archive


def _make_kernel(cache: Path, suite: str, made: Image) -> None:
    root = cache / f"kernel-{suite}"
    shutil.rmtree(root, ignore_errors=True)
    for package in Apt(cache, suite).download(("linux-image-amd64",)):
        if package.name.startswith("linux-"):
            unpack(package, root)
    if (root / "lib").is_dir():  # newer packages have their modules in /usr/lib already
        (root / "usr").mkdir(exist_ok=True)
        (root / "lib").rename(root / "usr/lib")
    (root / "lib").symlink_to("usr/lib")
    versions = [path.name for path in (root / "lib/modules").iterdir()]
    if len(versions) != 1:
        raise ImageError(f"{suite}: expected the modules of one kernel, found {versions}")
    modules = root / "lib/modules" / versions[0]
    run(["depmod", "-b", str(root), versions[0]])
    keep = _with_dependencies(modules, MODULES)
    for path in modules.rglob("*.ko*"):
        if str(path.relative_to(modules)) not in keep:
            path.unlink()
    run(["depmod", "-b", str(root), versions[0]])
    kernel = next(iter([*root.glob("boot/vmlinuz-*"), *modules.glob("vmlinuz")]), None)
    if kernel is None:
        raise ImageError(f"{suite}: no vmlinuz in the packages of linux-image-amd64")
    made.kernel.parent.mkdir(parents=True, exist_ok=True)
    write_cpio(root, made.parts[1], only="usr/lib/modules")
    shutil.copyfile(kernel, made.kernel)
    shutil.rmtree(root)


def _with_dependencies(modules: Path, names: tuple[str, ...]) -> set[str]:
    """Paths, relative to `modules`, of modules and of all that they need; built-in ones have none."""
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    kept: set[str] = set()
    for path in needs:
        if Path(path).name.split(".")[0].replace("-", "_") in names:
            kept |= {path, *needs[path]}  # modules.dep lists indirect needs too
    return kept


class Apt:
    """apt-get with lists, cache and state of its own, for one suite: nothing of this machine's is read or changed."""

    def __init__(self, cache: Path, suite: str) -> None:
        home = cache / "apt" / suite
        for name in ("lists/partial", "archives/partial"):
            (home / name).mkdir(parents=True, exist_ok=True)
        (home / "status").touch()
        (home / "sources.list").write_text(f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n")
        if "-backports" in suite:
            with (home / "sources.list").open("a") as sources:
                sources.write(f"deb [signed-by={KEYRING}] {MIRROR} {suite.removesuffix('-backports')} main\n")
        settings = {
            "Dir::Etc::SourceList": home / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::Etc::Preferences": "-",
            "Dir::Etc::PreferencesParts": "-",
            "Dir::State": home,
            "Dir::State::Lists": home / "lists",
            "Dir::State::Status": home / "status",
            "Dir::Cache": home,
            "Dir::Cache::Archives": home / "archives",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Install-Recommends": "false",
            "APT::Default-Release": suite,
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Debug::NoLocking": "true",
        }
        self._command = ["apt-get", "-qq", "-y", *(f"-o{name}={value}" for name, value in settings.items())]
        self._archives = home / "archives"
        run([*self._command, "update"])

    def download(self, names: tuple[str, ...]) -> list[Path]:
        """Packages and all that they depend on, fetched and checked against the archive's signature."""
        listed = run([*self._command, "--print-uris", "install", *names])
        run([*self._command, "--download-only", "install", *names])
        # 'URI' FILE SIZE HASH; what is fetched already isn't listed without an empty archive directory
        wanted = {line.split()[1] for line in listed.splitlines() if line.startswith("'")}
        found = sorted(self._archives.glob("*.deb"))
        return [path for path in found if not wanted or path.name in wanted]


def unpack(package: Path, root: Path) -> None:
    """A package's files into `root`; links that stand for directories there stay."""
    run(["dpkg-deb", "--extract", str(package), str(root)])


def run(command: list[str]) -> str:
    """A command's standard output. Raises ImageError with its last words."""
    environment = {**os.environ, "LC_ALL": "C", "PATH": _search_path(), "DEBIAN_FRONTEND": "noninteractive"}
    result = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, timeout=COMMAND_TIMEOUT_S
    )
    if result.returncode != 0:
        raise ImageError(f"{' '.join([command[0], *command[-3:]])}: {result.stderr.strip()[-500:]}")
    return result.stdout


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def write_cpio(root: Path, archive: Path, only: str = ".") -> None:
    """Everything in `root` (below `only`, with the directories above it) as an initramfs archive, owned by root."""
    partial = archive.with_suffix(".partial")
    with partial.open("wb") as out:
        for number, path in enumerate(_members(root, only), 1):
            out.write(_cpio_member(path.relative_to(root).as_posix(), path.lstat().st_mode, _content(path), number))
        out.write(_cpio_member("TRAILER!!!", 0, b"", 0))
    partial.replace(archive)


def cpio_of(files: dict[str, bytes]) -> bytes:
    """An initramfs archive of executable files, by name."""
    members = [_cpio_member(name, stat.S_IFREG | 0o755, data, n) for n, (name, data) in enumerate(files.items(), 1)]
    return b"".join([*members, _cpio_member("TRAILER!!!", 0, b"", 0)])


def _members(root: Path, only: str) -> Iterator[Path]:
    top = root / only
    yield from reversed([path for path in top.parents if root in path.parents])
    if top != root:
        yield top
    yield from sorted(top.rglob("*"))


def _content(path: Path) -> bytes:
    if path.is_symlink():
        return str(path.readlink()).encode()
    return path.read_bytes() if path.is_file() else b""


def _cpio_member(name: str, mode: int, data: bytes, number: int) -> bytes:
    """One entry in the format "newc" (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    named = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(named), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + named
    header += bytes(-len(header) % 4)
    return header + data + bytes(-len(data) % 4)
