"""What an import brings along, and what the command line alone sets up."""

import subprocess
import sys

import pytest

from jaxeff import main, train
from jaxeff.train import interrupt, launch, runtime

#: For files, pictures, checkpoints and data sets: nothing of it is needed to compute.
HEAVY = {
    *("PIL", "array_record", "grain", "huggingface_hub", "matplotlib", "ml_collections", "orbax"),
    *("safetensors", "sklearn", "tensorboardX", "tensorflow_datasets", "tokenizers"),
}
CORE = ("affine", "bench", "constraints", "distill", "hybrid", "layers", "models", "ode", "ops")


def loaded(modules):
    """Returns the top-level packages that a process has after importing some modules."""
    program = f"import {modules}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_the_core_needs_neither_files_nor_pictures():
    found = loaded(", ".join(f"jaxeff.{name}" for name in CORE))
    assert {"jax", "flax", "optax"} <= found
    assert not found & HEAVY


def test_data_configs_and_reports_do_without_jax():
    found = loaded("jaxeff, jaxeff.data, jaxeff.config_files, jaxeff.eval")
    assert not found & {"jax", "flax", *HEAVY} - {"ml_collections"}


@pytest.mark.parametrize("cpus", [True, False])
def test_only_the_command_line_changes_the_allocator(monkeypatch, tmp_path, cpus):
    calls = []
    monkeypatch.setattr(runtime, "keep_freed_memory", lambda: calls.append("command line"))
    assert runtime.only_cpus()  # these tests run on CPUs
    monkeypatch.setattr(runtime, "only_cpus", lambda: cpus)
    monkeypatch.setattr(launch, "train", lambda *_, **__: (True, None))
    monkeypatch.setattr(interrupt, "stopped_by", lambda: None)
    config = train.base_config()
    train.run(config, tmp_path)
    assert not calls
    main.main((config, tmp_path, "train"))
    assert calls == ["command line"] * cpus
