"""Sensors of recorded machines: absent means absent, counters wrap, nothing is counted twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.agent.power import PowerReading, PowerSensors
from shoal.agent.telemetry import Telemetry

from .recorded_machine import LAPTOP, record

RAPL = "sys/class/powercap/intel-rapl:0"


def package(energy_uj: int, range_uj: int = 262143328850) -> dict[str, str]:
    return {
        f"{RAPL}/name": "package-0\n",
        f"{RAPL}/energy_uj": f"{energy_uj}\n",
        f"{RAPL}/max_energy_range_uj": f"{range_uj}\n",
    }


def test_a_machine_without_sensors_reads_nothing(tmp_path: Path) -> None:
    sensors = PowerSensors(tmp_path, 0.0)
    assert sensors.read(1.0) == [] == sensors.read(2.0)


def test_a_counter_gives_watts_and_joules(tmp_path: Path) -> None:
    sensors = PowerSensors(record(tmp_path, package(1_000_000)), 0.0)
    record(tmp_path, package(31_000_000))
    assert sensors.read(2.0) == [PowerReading("package-0", "counter_model", 15.0, 30.0)]
    record(tmp_path, package(41_000_000))
    assert sensors.read(3.0) == [PowerReading("package-0", "counter_model", 10.0, 40.0)]


def test_a_counter_wraps(tmp_path: Path) -> None:
    sensors = PowerSensors(record(tmp_path, package(99_000_000, 100_000_000)), 0.0)
    record(tmp_path, package(4_000_000, 100_000_000))
    assert sensors.read(1.0) == [PowerReading("package-0", "counter_model", 5.0, 5.0)]


def test_a_stalled_or_reset_counter_is_absent_not_zero(tmp_path: Path) -> None:
    sensors = PowerSensors(record(tmp_path, package(90_000_000_000)), 0.0)
    assert sensors.read(1.0) == []
    record(tmp_path, package(1_000))
    assert sensors.read(2.0) == [], "a reset looks like a wrap of impossible power"
    record(tmp_path, package(7_001_000))
    assert sensors.read(3.0) == [PowerReading("package-0", "counter_model", 7.0, 7.0)]


def test_two_looks_at_once_say_nothing_and_lose_nothing(tmp_path: Path) -> None:
    sensors = PowerSensors(record(tmp_path, package(0)), 0.0)
    record(tmp_path, package(2_000_000))
    assert sensors.read(0.001) == []
    (reading,) = sensors.read(1.0)
    assert reading.watts == pytest.approx(2.0)


def test_a_counter_that_vanishes(tmp_path: Path) -> None:
    sensors = PowerSensors(record(tmp_path, package(0)), 0.0)
    (tmp_path / RAPL / "energy_uj").unlink()
    assert sensors.read(1.0) == []


def test_domains_inside_others_are_left_out(tmp_path: Path) -> None:
    files = package(0)
    for zone, name in (
        ("intel-rapl:0:0", "core"),
        ("intel-rapl-mmio:0", "package-0"),
        ("intel-rapl:1", "package-0"),
        ("intel-rapl:2", "psys"),
    ):
        files |= {
            f"sys/class/powercap/{zone}/name": name,
            f"sys/class/powercap/{zone}/energy_uj": "0",
            f"sys/class/powercap/{zone}/max_energy_range_uj": "1000000000",
        }
    sensors = PowerSensors(record(tmp_path, files), 0.0)
    for path in tmp_path.rglob("energy_uj"):
        path.write_text("1000000")
    assert [reading.domain for reading in sensors.read(1.0)] == ["package-0", "psys"]


def test_the_battery_speaks_only_while_it_discharges(tmp_path: Path) -> None:
    sensors = PowerSensors(record(tmp_path, LAPTOP), 0.0)
    assert sensors.read(1.0) == [PowerReading("battery:BAT0", "battery", 8.52)]
    record(tmp_path, {"sys/class/power_supply/BAT0/status": "Charging\n"})
    assert sensors.read(2.0) == []


def test_a_battery_of_current_and_voltage(tmp_path: Path) -> None:
    record(
        tmp_path,
        {
            "sys/class/power_supply/BAT1/type": "Battery\n",
            "sys/class/power_supply/BAT1/status": "Discharging\n",
            "sys/class/power_supply/BAT1/current_now": "-1000000\n",
            "sys/class/power_supply/BAT1/voltage_now": "11400000\n",
        },
    )
    assert PowerSensors(tmp_path, 0.0).read(1.0) == [PowerReading("battery:BAT1", "battery", 11.4)]


def test_hardware_monitors_prefer_the_average(tmp_path: Path) -> None:
    record(
        tmp_path,
        {
            "sys/class/hwmon/hwmon3/name": "amdgpu\n",
            "sys/class/hwmon/hwmon3/power1_average": "35000000\n",
            "sys/class/hwmon/hwmon3/power1_input": "36000000\n",
            "sys/class/hwmon/hwmon3/power1_label": "PPT\n",
            "sys/class/hwmon/hwmon4/name": "coretemp\n",
            "sys/class/hwmon/hwmon5/name": "dead\n",
            "sys/class/hwmon/hwmon5/power1_input": "0\n",
            "sys/class/hwmon/hwmon6/name": "odd\n",
            "sys/class/hwmon/hwmon6/power1_input": "n/a\n",
        },
    )
    assert PowerSensors(tmp_path, 0.0).read(1.0) == [PowerReading("amdgpu:PPT", "measured_rail", 35.0)]


def test_a_sample_of_this_process(tmp_path: Path) -> None:
    sample = Telemetry(tmp_path, 0.0).sample(None, 1.0)
    assert sample.agent_resident_bytes > 1 << 20 and sample.engine_resident_bytes is None
    assert sample.cpu_load_ratio is not None and 0 <= sample.cpu_load_ratio <= 1
    assert sample.power == ()
