"""The command line: ``python -m jaxeff.main --config=configs/irnn.py``.

Any field of the config can be overridden, ``--config.model.cell.features=64``. The same command
continues a run that was stopped or killed.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import sys
import traceback
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from jaxeff import signals
from jaxeff.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "File of the experiment's config.")
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run; runs/NAME-HASH of the config if unset.",
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "bench"],
    "train: train and test; eval: test a trained run again; bench: measure speed and memory.",
)
flags.mark_flag_as_required("config")


def default_workdir(config) -> str:
    """Returns a folder of its own for every distinct config."""
    fields = json.loads(config.to_json_best_effort())
    fields.pop("devices", None)  # where a run runs is not what it is
    text = json.dumps(fields, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"runs/{config.name or 'run'}-{digest}"


def main(argv: list[str]) -> None:
    """Runs the job that the flags ask for."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; options start with --")
    from jaxeff.train import interrupt
    from jaxeff.train.jobs import run

    path = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    if not os.path.exists(path):
        raise UserError(f"there is no config file {path}; configs/irnn.py is an example")
    config = _CONFIG.value
    run(config, _WORKDIR.value or default_workdir(config), _MODE.value)
    number = interrupt.stopped_by()
    if number is not None:
        sys.exit(128 + number)


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; a wrong flag or override is one sentence, not a traceback."""
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        text = " ".join(_unquoted(a) for a in error.args) or type(error).__name__
        complaint = re.search(r"jaxeff\.errors\.\w+: (.+)", text)
        if complaint is None and "Traceback" in text:
            _fail(text)  # a mistake in the config file itself: show where
        text = complaint[1] if complaint else " ".join(text.split())
        field = re.fullmatch(r"('\w+')( Did .*)?", text)
        if field:
            text = f"the config has no field {'.'.join(filter(None, field.groups()))}"
        _fail(text)
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    return rest


def _unquoted(argument: object) -> str:
    """Returns the text of an exception's argument; a KeyError's may be the repr of the text."""
    text = str(argument)
    return str(ast.literal_eval(text)) if re.fullmatch(r"(['\"]).*\1", text, re.DOTALL) else text


def _fail(message: str, status: int = 2) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    _leave(status)


def _leave(status: int) -> NoReturn:
    """Ends the process; one of several does not wait for the others, which wait for it."""
    if signals.several_processes():
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def cli() -> None:
    """Entry point of the installed command ``jaxeff``."""

    def guarded(argv: list[str]) -> None:
        try:
            main(argv)
        except UserError as error:
            _fail(str(error), getattr(error, "exit_status", 2))
        except Exception:
            traceback.print_exc()
            _leave(1)

    signals.watch()
    if any("devices.coordinator" in argument for argument in sys.argv):
        # Before JAX starts: what its threads log of a lost process is said in one sentence.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    app.run(guarded, flags_parser=_parse)


if __name__ == "__main__":
    cli()
