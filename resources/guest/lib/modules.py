"""Kernel modules of an unpacked kernel package, in the order in which they must be loaded."""

import subprocess
from pathlib import Path


class ModuleError(Exception):
    """A module that is asked for cannot be had; the text says which and why."""


def release(package):
    """The kernel release (``uname -r``) whose modules the unpacked ``package`` holds."""
    found = [path.name for path in (package / "lib/modules").glob("*") if path.is_dir()]
    if len(found) != 1:
        raise ModuleError(f"{package.name} holds the modules of {len(found)} kernels, not of one")
    return found[0]


def index(package):
    """Makes depmod's index of the unpacked ``package`` where it is missing."""
    name = release(package)
    if not (package / "lib/modules" / name / "modules.dep").exists():
        _run("depmod", "-b", str(package), name)


def closure(package, wanted):
    """Paths of the modules ``wanted`` and of all they need, each once, what is needed first.

    What is built into the kernel needs no file and is left out.
    """
    name = release(package)
    ordered = []
    for module in wanted:
        lines = _run("modprobe", "-S", name, "-d", str(package), "--ignore-install", "--show-depends", module)
        for line in lines.splitlines():
            kind, _, rest = line.partition(" ")
            if kind == "insmod":
                # "insmod PATH OPTIONS"; the path may hold spaces.
                path = Path(rest[:rest.rindex(".ko") + len(".ko")])
                if path not in ordered:
                    ordered.append(path)
    return ordered


def _run(*command):
    # A user's PATH may lack the directories of the system's programs.
    path = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             env={"PATH": path, "LC_ALL": "C"}, check=False)
    except FileNotFoundError as error:
        raise ModuleError(f"{command[0]} is not here: run ci/install-deps") from error
    if run.returncode != 0:
        raise ModuleError(f"{' '.join(command)}: {run.stderr.strip()}")
    return run.stdout
