"""Debian packages, fetched and unpacked without root, cached by version.

Called by ``resources/guest/build`` and ``ci/kvm-host``. Downloads go through the machine's own
apt configuration; nothing is installed and no mirror is named here.
"""

import os
import re
import shutil
import subprocess
import tempfile
import urllib.parse
from pathlib import Path


class PackageError(Exception):
    """A package cannot be had; the text says which, why, and what to do."""


def _apt_field(package, field, cache):
    """First value of ``field`` in the record of apt's candidate for ``package``, or None."""
    # An index of apt's lists of our own: container images often switch the machine's off, and
    # reading all lists for every question takes most of a second.
    index = [f"-oDir::Cache::{name}={cache.resolve() / name}.bin" for name in ("pkgcache", "srcpkgcache")]
    try:
        shown = subprocess.run(
            ["apt-cache", *index, "show", "--no-all-versions", package],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    except FileNotFoundError as error:
        raise PackageError("apt-cache is not here: the guest is made from Debian's packages") from error
    match = re.search(rf"^{field}: (.*)$", shown.stdout, re.MULTILINE)
    return match.group(1) if match else None


def newest_cached(cache, pattern):
    """The unpacked package of the highest version whose directory name matches, or None."""
    def version_key(path):
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
    found = [path for path in cache.glob(pattern) if path.is_dir() and (path / ".complete").exists()]
    return max(found, key=version_key, default=None)


def kernel_package(meta, cache):
    """Name of the package that holds the files which the meta package ``meta`` stands for, or None."""
    cache.mkdir(parents=True, exist_ok=True)
    depends = _apt_field(meta, "Depends", cache) or ""
    match = re.search(r"linux-image-[0-9][^ ,]*", depends)
    return match.group(0) if match else None


def fetch(package, pattern, cache, say):
    """Directory with the unpacked files of apt's candidate for ``package``.

    ``pattern`` matches the cache's directory names of any version of it: when apt cannot name or
    download a candidate, the newest one already here serves, with a notice.
    """
    cache.mkdir(parents=True, exist_ok=True)
    version = _apt_field(package, "Version", cache) if package else None
    if version is None:
        reason = f"apt knows no package {package or pattern} (are its lists empty? run ci/install-deps, or apt-get update as root)"
    else:
        target = cache / f"{package}_{urllib.parse.quote(version, safe='')}"
        if (target / ".complete").exists():
            return target
        reason = _download(package, version, target, say)
        if reason is None:
            return target
    older = newest_cached(cache, pattern)
    if older is None:
        raise PackageError(reason)
    say(f"{reason}; using {older.name}, which is here")
    return older


def _download(package, version, target, say):
    """Unpacks ``package`` into ``target``; None, or the reason why it cannot be had."""
    say(f"downloading {package} {version}")
    with tempfile.TemporaryDirectory(prefix="download-", dir=target.parent) as scratch:
        download = subprocess.run(
            ["apt-get", "download", f"{package}={version}"],
            cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        debs = list(Path(scratch).glob("*.deb"))
        if download.returncode != 0 or len(debs) != 1:
            detail = [line for line in download.stdout.splitlines() if line.startswith("E:")]
            return (f"cannot download {package} {version} ({'; '.join(detail) or 'apt-get download failed'}); "
                    "if the version is no longer offered, run apt-get update as root")
        files = Path(scratch) / "files"
        unpack = subprocess.run(["dpkg", "-x", debs[0], files],
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if unpack.returncode != 0:
            return f"cannot unpack {debs[0].name}: {unpack.stdout.strip()}"
        (files / ".complete").touch()
        if target.exists():
            shutil.rmtree(target)
        os.rename(files, target)
    return None
