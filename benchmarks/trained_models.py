"""Trains the small models that the package ships, and writes them into ``jaxeff/trained``.

    python benchmarks/trained_models.py                    # all of them, an hour of one core
    python benchmarks/trained_models.py digits-tarnn       # some
    python benchmarks/trained_models.py --from-runs        # from the runs that are there

Every model is what one command of `jaxeff.main` makes; its ``report.json`` has that command. The
runs lie in ``runs/trained``, and one that is there is continued or, if it is finished, kept.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import jaxeff

ROOT = Path(__file__).parents[1]
SMALL = ("model.widths=8,16,32",)
SMALL_EXPERT = ("model.expert.widths=8,16,32", "prerequisites.expert.model.widths=8,16,32")

#: Config and overrides of each model.
MODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "digits-tarnn": ("tarnn.py", ()),
    "digits-irnn": ("irnn.py:pixels", ()),
    "digits-fptt-lstm": ("fptt.py", ()),
    "digits-fastgrnn": ("irnn.py:pixels,cell=fastgrnn", ()),
    "digits-gru": ("irnn.py:pixels,cell=gru", ()),
    "digits-rows-irnn": ("irnn.py", ()),
    "digits-resnet": ("images.py", SMALL),
    "digits-global": ("global_cnn.py", ("model.widths=8,16,32,32",)),
    "digits-si": ("si_cnn.py", SMALL),
    "digits-shared": ("shared_conv.py", SMALL),
    "digits-dcl": ("dcl.py", SMALL),
    "digits-selective": ("selective.py", SMALL),
    "digits-hybrid": ("hybrid.py", SMALL_EXPERT),
    "digits-disk": ("disk.py", ()),
    "digits-avae": ("avae.py", ()),
    "digits-avae3d": ("avae3d.py", ()),
    "verses-bottleneck": (
        "bottleneck.py",
        (
            "data.vocabulary=3000",
            "model.shape.vocabulary=3000",
            "model.shape.width=32",
            "prerequisites.teacher.data.vocabulary=3000",
            "prerequisites.teacher.model.shape.vocabulary=3000",
            "prerequisites.teacher.model.shape.width=32",
        ),
    ),
}


def make(name: str, run: bool) -> None:
    """Trains one model, and saves it where the package finds it."""
    config, overrides = MODELS[name]
    workdir = f"runs/trained/{name}"
    if run:
        command = ["-m", "jaxeff.main", f"--config=configs/{config}", f"--workdir={workdir}"]
        flags = [f"--config.{override}" for override in ("devices.cpu=1", *overrides)]
        subprocess.run([sys.executable, *command, *flags], check=True, cwd=ROOT)
    trained = jaxeff.load(ROOT / workdir)
    folder = ROOT / "jaxeff" / "trained" / name
    trained.save(folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name}: {size / 1000:.0f} kB, test {trained.report['metrics']['test']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="all of them if there is none")
    parser.add_argument("--from-runs", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    for name in arguments.names or MODELS:
        make(name, not arguments.from_runs)


if __name__ == "__main__":
    main()
