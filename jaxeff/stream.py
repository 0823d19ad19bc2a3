"""Predictions of a recurrent model while its inputs arrive, one line of values a step.

    python -m jaxeff.stream RUN < series.csv
    sensor | python -m jaxeff.stream digits-tarnn --every=8 --outputs

RUN is the folder of a run, one that ``save`` wrote, the name of a model that comes with the
package, or an exported ``step.stablehlo``. Every line has the values of one step, apart by commas,
semicolons or spaces; a first line without any number is a header.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxeff.errors import ConfigError, DataError, UserError
from jaxeff.streaming import STEP, RecurrentStream
from jaxeff.train import trained_model


def parse_line(text: str, number: int, features: int) -> list[float] | None:
    """Returns the values of a line; None for an empty line, and for a header in the first.

    Args:
      text: of the line.
      number: of the line, from 1.
      features: values that a step has.

    Raises:
      DataError: another number of values, or something else than finite numbers; the line is named.
    """
    cells = re.split(r"\s*[,;]\s*|\s+", text.strip())
    if cells == [""]:
        return None
    values = [_number(cell) for cell in cells]
    if number == 1 and all(value is None for value in values):
        return None
    for cell, value in zip(cells, values, strict=True):
        if value is None or not math.isfinite(value):
            raise DataError(f"line {number}: {cell[:40]!r} is no finite number")
    if len(values) != features:
        raise DataError(f"line {number}: has {len(values)} values, but a step has {features}")
    return [value for value in values if value is not None]


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def rows(lines: Iterable[bytes], features: int) -> Iterator[list[float]]:
    """Yields the values of every line that has some, see `parse_line`."""
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise DataError(f"line {number}: is not UTF-8 text") from None
        values = parse_line(text, number, features)
        if values is not None:
            yield values


def described(stream: RecurrentStream, outputs: np.ndarray, show_outputs: bool) -> str:
    """Returns a line of output: the class if there is one, and the outputs if they are asked for.

    Where there are no classes, they are always shown.
    """
    classes = stream.task in ("classification", "tagging")
    parts = []
    if classes:
        label = int(stream.labels(outputs))
        parts.append(stream.class_names[label] if stream.class_names else str(label))
    if show_outputs or not classes:
        parts += [f"{value:.6g}" for value in outputs]
    return ",".join(parts)


def run(
    stream: RecurrentStream,
    lines: Iterable[bytes],
    out: IO[str],
    *,
    every: int = 1,
    show_outputs: bool = False,
) -> None:
    """Prints a prediction as each line arrives.

    Args:
      stream: a single stream.
      lines: of values.
      out: where predictions are printed; each is flushed.
      every: prints after every so many steps, and after the last one.
      show_outputs: whether the outputs are printed beside the class.

    Raises:
      DataError: a line that is no step; what came before it is printed.
    """
    features = stream.features
    if features is None or len(features) > 1:
        raise ConfigError("the model has no steps of values; stream a recurrent model")
    width = features[0] if features else 1
    pending = None
    for values in rows(lines, width):
        if features:
            step: Any = np.array(values, np.float32)
        elif values[0].is_integer():
            step = np.int32(values[0])
        else:
            raise DataError(f"a step is the number of a symbol, not {values[0]}")
        pending = stream.push(step)
        if stream.steps % every == 0:
            print(described(stream, pending, show_outputs), file=out, flush=True)
            pending = None
    if pending is not None:
        print(described(stream, pending, show_outputs), file=out, flush=True)


def open_stream(name: str) -> RecurrentStream:
    """Returns a single stream of a run, a saved or shipped model, or an exported step."""
    path = Path(name)
    if path.is_file() or (path / STEP).is_file():
        return RecurrentStream(path)
    return RecurrentStream(trained_model.load(name))


def _every(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxeff.stream",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="folder, name of a model, or step.stablehlo")
    parser.add_argument("--every", type=_every, default=1, metavar="N", help="print every N steps")
    parser.add_argument("--outputs", action="store_true", help="print the model's outputs too")
    options = parser.parse_args(arguments)
    try:
        stream = open_stream(options.run)
        run(
            stream,
            sys.stdin.buffer,
            sys.stdout,
            every=options.every,
            show_outputs=options.outputs,
        )
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return getattr(error, "exit_status", 2)
    except BrokenPipeError:  # whoever read the predictions has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
