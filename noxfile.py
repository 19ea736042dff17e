"""Sessions of the project, cut by what the machine needs. `tests` runs all that this machine can.

Works as a script on a machine without nox (`python3 noxfile.py -s demo`): the standard library makes `.venv`, installs
the project and nox there, and hands over. All sessions share that environment, so that a second run starts at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
STAMP = ENVIRONMENT / "made-from"
OLDEST = (3, 11)
EXIT_MACHINE = 3


def ensure_environment() -> Path:
    """Makes or renews `.venv` when it isn't what the project asks for; gives its Python."""
    wanted = _fingerprint()
    with Path(__file__).open() as lock:
        # Two sessions started at once: the second one waits for the first, then finds it done.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if PYTHON.exists() and STAMP.is_file() and STAMP.read_text() == wanted:
            return PYTHON
        print(f"setting up {ENVIRONMENT} (once; needs a Python package index)", file=sys.stderr, flush=True)
        STAMP.unlink(missing_ok=True)
        _make_venv()
        _install()
        STAMP.write_text(wanted)
    return PYTHON


def _fingerprint() -> str:
    parts = [str(ROOT), *((ROOT / name).read_text() for name in ("pyproject.toml", "constraints.txt"))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _make_venv() -> None:
    if PYTHON.exists():
        probe = subprocess.run([str(PYTHON), "-c", "import pip"], check=False, capture_output=True)
        if probe.returncode == 0:
            return
    try:
        import ensurepip  # noqa: F401  (Debian packs it apart)
    except ImportError:
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        sys.exit(_lacking(f"{version} can't make virtual environments", f"apt-get install {version}-venv"))
    venv.EnvBuilder(with_pip=True, clear=ENVIRONMENT.exists(), symlinks=True).create(ENVIRONMENT)


def _install() -> None:
    """Installs what CI has tested together; where an index doesn't have that, whatever the project's bounds allow."""
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--editable", f"{ROOT}[dev]"]
    constrained = [*command, "--constraint", str(ROOT / "constraints.txt")]
    for attempt in (constrained, constrained, command):
        if subprocess.run(attempt, cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode == 0:
            return
        print("noxfile: installation failed, trying again", file=sys.stderr, flush=True)
    sys.exit(_lacking("the project's packages can't be installed", "see pip's message above"))


def _lacking(what: str, how: str) -> int:
    print(f"noxfile: {what}\n  to get it: {how}", file=sys.stderr)
    return EXIT_MACHINE


def _hand_over(arguments: list[str]) -> None:
    """As a script: runs nox of the environment with the same arguments. Doesn't return."""
    if sys.version_info < OLDEST:
        newer = next(filter(None, (shutil.which(f"python3.{minor}") for minor in range(14, OLDEST[1] - 1, -1))), None)
        if newer is None:
            found = ".".join(map(str, sys.version_info[:2]))
            sys.exit(_lacking(f"Python 3.11 or newer is needed, this is {found}", "apt-get install python3.11"))
        os.execv(newer, [newer, str(Path(__file__).resolve()), *arguments])
    python = str(ensure_environment())
    os.execv(python, [python, "-m", "nox", "--noxfile", str(Path(__file__).resolve()), *arguments])


if __name__ == "__main__":
    _hand_over(sys.argv[1:])

import nox  # noqa: E402  (only there once the environment is made)
import nox.command  # noqa: E402

nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "none"
PACKAGES = ("emul", "ccm", "lab")
TEST_DIRECTORIES = ("unit", "explore", "sim", "fuzz", "netns", "docker", "interop", "regression", "vagrant")

ADAPTER_TESTS = (
    "adapter_doors", "adapter_process", "cm_programs", "open_adapter", "perftest_refusals", "pingpong",
    "port_limits", "ports", "replaced_adapters", "service_port",
)  # fmt: skip
"""Those of tests/netns that are about adapters."""
MANAGER_TESTS = ("found", "journal", "members", "own_clients", "path_mtu", "probes", "sessions", "settings")
"""Those of tests/sim that are about managers."""


def run(session: nox.Session, *command: str, success_codes: tuple[int, ...] = (0,), **variables: str) -> None:
    """Runs a module of the shared environment (`python -m ...`)."""
    python = str(ensure_environment())
    # `lab` starts programs of its own by name.
    path = f"{PYTHON.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {"PATH": path, "PYTHONUNBUFFERED": "1", **variables}
    session.run(python, "-m", *command, external=True, env=environment, success_codes=success_codes)


NO_TESTS = 5
"""pytest's exit status when a selection is empty."""
PARALLEL = ("--numprocesses", "auto", "--dist", "loadfile", "-m", "not alone")


def pytest(session: nox.Session, *arguments: str) -> None:
    """Runs pytest on as many processes as there are cores, a file's tests together, as they share their set-up; then,
    one after the other, the tests that want the machine to themselves.
    """
    failed = False
    for selection in (PARALLEL, ("-m", "alone")):
        try:
            run(session, "pytest", *selection, *arguments, *session.posargs, success_codes=(0, NO_TESTS))
        except nox.command.CommandFailed:
            failed = True  # all are run, whatever the first ones say
    if failed:
        session.error("tests failed")


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Style and spelling."""
    run(session, "ruff", "check", ".")
    # Tests misspell on purpose.
    run(session, "codespell_lib", *PACKAGES, "docs", "topologies", "changelog.d", "README.md", "CONTRIBUTING.md")


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Strict types on all packages."""
    run(session, "mypy")


def _test_session(name: str) -> None:
    def body(session: nox.Session) -> None:
        pytest(session, f"tests/{name}")

    body.__doc__ = f"The tests of tests/{name}."
    nox.session(venv_backend="none", name=name)(body)


for _name in TEST_DIRECTORIES:
    if any((ROOT / "tests" / _name).glob("test_*.py")):
        _test_session(_name)


@nox.session(venv_backend="none")
def softroce(session: nox.Session) -> None:
    """The adapter against Linux soft-RoCE in virtual machines: minutes, and packages of Debian at the first time."""
    run(session, "pytest", "tests/softroce", *session.posargs, LAB_SOFTROCE="1")


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """Links of the documents, and references to requirements, lead somewhere."""
    run(session, "pytest", "tests/unit/test_docs.py", *session.posargs)


@nox.session(venv_backend="none", name="compile")
def compile_hot(session: nox.Session) -> None:
    """Compiles the hot modules of adapter, manager and simulator; plain Python where there is no C compiler."""
    session.run(str(ensure_environment()), "-m", "lab.compile", external=True, success_codes=[0, EXIT_MACHINE])


PLAIN = "CCM_LAB_PLAIN"
"""With a value: what is compiled stays out of use."""
COMPILED_TESTS = tuple(f"tests/{name}" for name in ("unit", "sim", "netns"))


@nox.session(venv_backend="none")
def compiled(session: nox.Session) -> None:
    """The same tests against compiled modules; what replaces methods is left out. Takes a C compiler."""
    compile_hot(session)
    asked = "from emul import compiled; print(compiled.is_current())"
    said = session.run(str(ensure_environment()), "-c", asked, external=True, silent=True, env={PLAIN: ""})
    if "True" not in str(said):
        session.skip("nothing is compiled here")
    run(session, "pytest", *PARALLEL, *COMPILED_TESTS, *session.posargs)


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """The benchmarks, each beside its reference."""
    run(session, "lab", "bench", *session.posargs)


COVERED = {"emul": 95, "ccm": 93}
"""Branches that tests take at the least, in %, by package."""
UNTOLD = "ccm/process.py,ccm/compile.py"
"""Of these nothing is told: host processes are killed together with their lab, and compiling is for compiled code."""


@nox.session(venv_backend="none")
def coverage(session: nox.Session) -> None:
    """Branches of `emul` and `ccm` that their tests take, adapter processes included: 95 and 93 % at the least."""
    tests = [f"tests/{name}" for name in ("unit", "fuzz", "interop")]
    tests += [f"tests/netns/test_{name}.py" for name in ADAPTER_TESTS]
    tests += [f"tests/sim/test_{name}.py" for name in MANAGER_TESTS]
    measured = (*(f"--cov={package}" for package in COVERED), "--cov-report=")
    # Of compiled modules nothing is told.
    run(session, "pytest", *PARALLEL, *measured, *tests, *session.posargs, **{PLAIN: "1"})
    for package, least in COVERED.items():
        run(session, "coverage", "report", f"--include={package}/*", f"--omit={UNTOLD}", f"--fail-under={least}")


NIGHTLY = {"ha-pair": 9000, "quad-switched": 1000}
"""Schedules of random faults, by topology."""
NIGHTLY_REPORT = "lab-runs/nightly"


@nox.session(venv_backend="none")
def nightly(session: nox.Session) -> None:
    """Ten thousand schedules of random faults in the simulator, many seeds of each, a million hostile frames, and all
    that can happen to two managers within larger bounds. LAB_NIGHTLY_SEED (0) is the first schedule's seed.
    """
    compile_hot(session)  # the schedules run compiled, several times as fast; what replaces methods runs plain
    failed = []
    seed = os.environ.get("LAB_NIGHTLY_SEED", "0")
    for topology, runs in NIGHTLY.items():
        try:
            options = ("--runs", str(runs), "--seed", seed, "--report", NIGHTLY_REPORT)
            run(session, "lab", "campaign", topology, *options)
        except nox.command.CommandFailed:
            failed.append(topology)
    session.env.update({"LAB_SIM_SEEDS": "100", "LAB_EXPLORE": "deep", "LAB_STATEFUL_EXAMPLES": "2000"})
    session.env.update({"LAB_FUZZ_FRAMES": "1000000", "LAB_FUZZ_ENTRIES": "300000", "LAB_FUZZ_WALKS": "2000"})
    session.env[PLAIN] = "1"
    pytest(session, "tests/sim", "tests/fuzz", "tests/explore", "tests/unit/test_ccm_stateful.py")
    if failed:
        session.error(f"schedules of {', '.join(failed)} failed: see {NIGHTLY_REPORT}")


@nox.session(venv_backend="none")
def demo(session: nox.Session) -> None:
    """A storage pair loses a cable under load and gets its sessions back."""
    if os.geteuid() != 0:
        session.log("not root: the lab lives in a user namespace, and its adapters use AF_PACKET instead of AF_XDP")
    run(session, "lab", "run", "cable-cut", *session.posargs)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """All that this machine can; the tests that were left out are listed with the reason, above the last line."""
    failed = []
    # A slip of style must not hide what the tests say.
    for part in (lint, types):
        try:
            part(session)
        except nox.command.CommandFailed:
            failed.append(part.__name__)
    pytest(session, "tests")
    if failed:
        session.error(f"the tests passed, but not: {', '.join(failed)}")
