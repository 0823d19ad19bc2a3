"""The command line: ``python -m jaxeff.main --config=configs/irnn.py``.

Any field of the config can be overridden, ``--config.model.cell.features=64``. The same command
continues a run that was stopped or killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import ml_collections
from absl import app, flags, logging

from jaxeff import config_files, overrides, signals
from jaxeff.config import distinctive
from jaxeff.errors import UserError, explained

_FLAGS = flags.FLAGS


def define(values: flags.FlagValues) -> None:
    """Defines the options of the command line."""
    flags.DEFINE_string("config", None, "File of the experiment's config.", values)
    flags.DEFINE_string(
        "workdir", None, "Folder of the run; runs/NAME-HASH of the config if unset.", values
    )
    flags.DEFINE_enum(
        "mode",
        "train",
        ["train", "eval", "bench", "compile", "export"],
        "train: train and test; eval: test a trained run again; bench: measure speed and memory; "
        "compile: compile the training step for devices that need not be there; "
        "export: write a trained run for other runtimes.",
        values,
    )
    flags.DEFINE_bool("debug", False, "Show the traceback behind an error's sentence.", values)


define(_FLAGS)


def default_workdir(config: ml_collections.ConfigDict) -> str:
    """Returns a folder of its own for every distinct config."""
    fields = distinctive(json.loads(config.to_json_best_effort()))
    text = json.dumps(fields, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"runs/{config.name or 'run'}-{digest}"


def parse(
    argv: list[str], values: flags.FlagValues = _FLAGS
) -> tuple[ml_collections.ConfigDict, str | None, str]:
    """Returns the config, the working directory (None if not given) and the mode of a command.

    Args:
      argv: the command line, the program's name first.
      values: flags to parse it into.

    Raises:
      UserError: an option, the config file or an overridden field is wrong.
    """
    try:
        argv = values.read_flags_from_files(argv, force_gnu=False)
        fields, rest = overrides.take(argv[1:])
        stray = values([*argv[:1], *rest])[1:]
    except flags.Error as error:
        raise UserError(str(error).removeprefix("ERROR:: ")) from error
    if stray:
        raise UserError(f"unexpected argument {stray[0]!r}; options start with --")
    if not values.config:
        raise UserError("--config is missing; name a config file such as configs/irnn.py")
    if sum(bool(re.match("--?config(=|$)", argument)) for argument in rest) > 1:
        raise UserError("--config is given twice; name one config file")
    config = config_files.load(values.config)
    overrides.apply_all(config, fields)
    if values.workdir == "":
        raise UserError("--workdir is empty; name a folder, or leave the option out")
    if values.workdir and not values.workdir.isprintable():
        raise UserError(f"--workdir has a character that no folder should: {values.workdir!r}")
    return config, values.workdir, values.mode


def main(command: Any) -> None:
    """Runs the job that `parse` understood."""
    config, workdir, mode = command
    from jaxeff.train import interrupt, runtime
    from jaxeff.train.launch import run

    if runtime.only_cpus():  # a setting of the whole process, which is this command's own
        runtime.keep_freed_memory()

    run(config, workdir or default_workdir(config), mode)
    number = interrupt.stopped_by()
    if number is not None:
        sys.exit(128 + number)


def sentence(error: UserError) -> str:
    """Returns the text of an error as a single line, whatever stands in it."""
    text = " ".join(str(error).split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _fail(error: UserError, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    print(f"error: {sentence(error)}", file=sys.stderr, flush=True)
    _leave(getattr(error, "exit_status", 2))


def _leave(status: int) -> NoReturn:
    """Ends the process, one of several by `processes.end`."""
    if signals.several_processes():
        from jaxeff.train import processes

        sys.stdout.flush()
        processes.end(status)
    sys.exit(status)


def cli() -> None:
    """Entry point of the installed command ``jaxeff``."""
    debug = any(argument in ("--debug", "-debug", "--debug=true") for argument in sys.argv)

    def parsed(argv: list[str]) -> Any:
        with _sentences():
            command = parse(argv)
        if not _FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        return command

    def guarded(command: Any) -> None:
        with _sentences():
            main(command)

    @contextlib.contextmanager
    def _sentences() -> Iterator[None]:
        try:
            yield
        except UserError as error:
            _fail(error, debug)
        except Exception as error:
            if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
                traceback.print_exc()
                _leave(1)
            _fail(
                UserError(
                    f"memory ran out ({explained(error)}); choose smaller batches, data or models"
                ),
                debug,
            )

    signals.watch()
    if any("devices.coordinator" in argument for argument in sys.argv):
        # Before JAX starts: what its threads log of a lost process is said in one sentence.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    app.run(guarded, flags_parser=parsed)


if __name__ == "__main__":
    cli()
