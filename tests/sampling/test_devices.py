import subprocess
import sys

import jax
import pytest
from conftest import ROOT

from idrc_jax.sampling import devices


def count_in_a_new_process(environment, asked):
    code = (
        f"from idrc_jax.sampling import devices; import jax; devices.configure_cpu({asked}); print(jax.device_count())"
    )
    environment = {"PATH": "/usr/bin", "JAX_PLATFORMS": "cpu", **environment}
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    )
    return int(answer.stdout)


@pytest.mark.parametrize(
    ("environment", "asked", "expected"),
    [
        ({}, 3, 3),
        ({}, 1, 1),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, 3, 5),
        ({"JAX_NUM_CPU_DEVICES": "2"}, 3, 2),
    ],
)
def test_entry_points_ask_for_devices_unless_the_user_has(environment, asked, expected):
    assert count_in_a_new_process(environment, asked) == expected


def test_meshes():
    assert devices.mesh().size == jax.local_device_count()
    assert devices.mesh(1).size == 1
    with pytest.raises(ValueError, match="Expected 99 devices"):
        devices.mesh(99)
