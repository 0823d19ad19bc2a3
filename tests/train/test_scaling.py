"""Trainings on 1, 2, 4 and 8 devices, whole and in parts; measured by ``scaled_devices.py``."""

import json
import sys
from pathlib import Path

import pytest

TOLERANCE = 1e-5
FLAGS = "--xla_force_host_platform_device_count=8"


@pytest.fixture
def measured(start, environment, tmp_path):
    program = start(
        *(sys.executable, Path(__file__).with_name("scaled_devices.py"), tmp_path / "out.json"),
        XLA_FLAGS=f"{environment['XLA_FLAGS']} {FLAGS}",
    )
    assert program.wait(400) == 0, program.output
    return json.loads((tmp_path / "out.json").read_text())


@pytest.mark.slow
def test_devices_parts_and_rates_make_the_updates_of_one_device(measured):
    for algorithm in ("bptt", "fptt"):
        found = measured[algorithm]
        assert found.pop("moved") > 0.01
        assert len(found) == 8
        assert max(found.values()) < TOLERANCE, (algorithm, found)
    rate = measured["rate"]
    assert rate.pop("moved") > 0.01
    assert max(rate[count] for count in ("1", "2", "4", "8")) < TOLERANCE, rate
