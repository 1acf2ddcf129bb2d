"""Get the test sources of the installed Transformers: its PyPI sdist holds them, its wheel does not.

They are unpacked once into a cache folder and never become part of this repository. Environment variables:

- `HF_TOKACCEL_UPSTREAM_TESTS`: the cache folder (default `~/.cache/hf_tokaccel/transformers-tests`). An sdist put
  there by hand, `transformers-<version>.tar.gz`, is used without any network.
- `HF_TOKACCEL_REQUIRE_UPSTREAM=1`: fail, rather than skip, where the sources cannot be had (for CI).
"""

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path, PurePosixPath


class UpstreamError(RuntimeError):
    """Transformers' own tests cannot be had here; the message says why and what to do."""


@functools.cache
def _result() -> tuple[Path | None, str]:
    """The folder with the sources or the reason why there is none: asked once, so that offline runs wait only once."""
    try:
        return _unpacked(cache_folder(), version("transformers")), ""
    except UpstreamError as error:
        return None, str(error)


def sources() -> Path:
    """The folder with the test sources of the installed Transformers, fetched at the first call."""
    folder, reason = _result()
    if folder is None:
        raise UpstreamError(reason)
    return folder


def cache_folder() -> Path:
    chosen = os.environ.get("HF_TOKACCEL_UPSTREAM_TESTS")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen).expanduser() if chosen else home / "hf_tokaccel" / "transformers-tests"


def _unpacked(cache: Path, wanted: str) -> Path:
    folder = cache / wanted
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{wanted}-", dir=cache))
    except OSError as error:
        raise UpstreamError(f"cannot write the cache {cache}: {error}; set HF_TOKACCEL_UPSTREAM_TESTS") from error
    try:
        archive = cache / f"transformers-{wanted}.tar.gz"
        if not archive.is_file():
            archive = _download(wanted, scratch)
        _extract(archive, scratch / "tests")
        # The folder appears under its name complete or not at all, whichever of several processes is first.
        try:
            (scratch / "tests").rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _download(wanted: str, target: Path) -> Path:
    """Let pip fetch the sdist, so that its index, proxy and certificate settings hold."""
    by_hand = f"or put transformers-{wanted}.tar.gz into {cache_folder()}"
    if importlib.util.find_spec("pip") is None:
        raise UpstreamError(f"this environment has no pip to fetch the sdist: install it, {by_hand}")
    # Only transformers itself must be an sdist: pip also reads its metadata, with a setuptools that may be a wheel.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--retries", "1", "--timeout", "30", "--no-deps", "--no-binary", "transformers"]
    command += ["--dest", str(target), f"transformers=={wanted}"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired as error:
        raise UpstreamError(f"pip did not fetch the sdist within {error.timeout:.0f} s: retry, {by_hand}") from None
    found = sorted(target.glob("transformers-*.tar.gz"))
    if run.returncode or not found:
        errors = [line for line in run.stderr.splitlines() if line.startswith("ERROR")] or ["no message"]
        raise UpstreamError(f"pip cannot fetch the sdist of transformers {wanted} ({errors[-1]}): retry, {by_hand}")
    return found[0]


def _extract(archive: Path, target: Path) -> None:
    """Write the modules that lie directly in the archive's `tests` folder, whatever else it holds."""
    target.mkdir()
    with tarfile.open(archive) as opened:
        for member in opened:
            parts = PurePosixPath(member.name).parts
            if len(parts) == 3 and parts[1] == "tests" and parts[2].endswith(".py") and member.isfile():
                (target / parts[2]).write_bytes(opened.extractfile(member).read())
    if not (target / "test_modeling_common.py").is_file():
        raise UpstreamError(f"{archive.name} holds no tests/test_modeling_common.py")
    # Upstream's test_configuration_common executes this file.
    (target / "__init__.py").touch()
