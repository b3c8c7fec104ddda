"""The machine's name and description."""

import json
import re
import subprocess
import sys

from rnnpar import machine


def test_name_is_a_folder_name_and_always_the_same():
    assert re.fullmatch(r"[a-z0-9-]+-\d+c-[0-9a-f]{4}", machine.name())
    other = subprocess.run([sys.executable, "-m", "rnnpar.machine"], capture_output=True, text=True)
    assert other.stdout.strip() == machine.name()


def test_two_hosts_have_two_names(monkeypatch):
    one = machine._host_hash()
    monkeypatch.setattr(machine.platform, "node", lambda: "another-host")
    assert machine._host_hash() != one


def test_description_is_plain_and_complete():
    description = json.loads(json.dumps(machine.describe()))
    for key in (
        "name",
        "cpu",
        "caches",
        "cores_allowed",
        "memory_bytes",
        "gpu",
        "blas",
        "thread_variables",
        "versions",
    ):
        assert key in description
    assert description["versions"]["numpy"]
    assert description["cores_allowed"] >= 1


def test_a_control_groups_quota_counts(monkeypatch):
    monkeypatch.setattr(machine, "_cgroup_quota", lambda: 1.5)
    assert machine.cores_allowed.__wrapped__() == 1
