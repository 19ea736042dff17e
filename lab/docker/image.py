"""What a node's container sees: an image without files, and this machine's own programs mounted into it read-only.

Nothing is pulled from a registry, and a container runs the very interpreter and packages that run the lab. Knows paths
of this machine; knows nothing of nodes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import ccm
import emul
from lab.docker.engine import Bind, Engine

LABEL = "ccm-lab"
SYSTEM_DIRECTORIES = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
SYSTEM_FILES = (
    "/etc/ld.so.cache", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/localtime", "/etc/alternatives",
)  # fmt: skip
"""Of /etc only what programs need to start and to name users: no secrets, no settings."""


def image_name() -> str:
    """Repository and tag of the node image: one for each version of the lab."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"ccm-lab-node:{version('ccm-lab').replace('+', '-')}"
    except PackageNotFoundError:
        return "ccm-lab-node:checkout"


def ensure_image(engine: Engine) -> str:
    """Makes the node image unless it is there; gives its name."""
    name = image_name()
    engine.ensure_empty_image(name, {LABEL: "image"})
    return name


def python_directories() -> list[str]:
    """Where the interpreter, its packages and the lab's own code are: installation, virtual environment, checkout."""
    executable = Path(sys.executable)
    wanted = [
        sys.base_prefix,
        sys.base_exec_prefix,
        sys.prefix,
        str(executable.parent.parent),
        str(Path(os.path.realpath(executable)).parent.parent),
        *package_directories(),
        *_other_packages(),
    ]
    return _without_repetition(wanted)


def package_directories() -> list[str]:
    """The directories that `emul` and `ccm` are imported from."""
    return _without_repetition(str(Path(str(package.__file__)).resolve().parent.parent) for package in (emul, ccm))


def binds() -> list[Bind]:
    """All that is mounted into each container, read-only; a directory below another one is left out."""
    wanted = [path for path in (*SYSTEM_DIRECTORIES, *SYSTEM_FILES) if Path(path).exists()]
    wanted += python_directories()
    wanted += [os.path.realpath(path) for path in python_directories()]
    kept: list[str] = []
    for path in sorted(_without_repetition(wanted), key=lambda path: path.count("/")):
        if path != "/" and not any(path.startswith(other + "/") for other in kept):
            kept.append(path)
    return [Bind(path) for path in kept]


def python_environment() -> dict[str, str]:
    """Environment in which the container's interpreter finds the same packages as this one."""
    installed = (sys.prefix, sys.base_prefix)
    search = [path for path in (*package_directories(), *_other_packages()) if not path.startswith(installed)]
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "PYTHONPATH": os.pathsep.join(_without_repetition(search)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "LANG": "C.UTF-8",
    }


def _other_packages() -> list[str]:
    """Directories of packages outside the interpreter's own, such as a user's; not the directory of a script."""
    names = ("site-packages", "dist-packages")
    return [entry for entry in sys.path if Path(entry).name in names and Path(entry).is_dir()]


def _without_repetition(paths: Iterable[str]) -> list[str]:
    # Not resolved: a container needs them under the names that programs were started with.
    return list(dict.fromkeys(os.path.normpath(path) for path in paths))
