"""The machine's name and description."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rnnpar import doctor, machine


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


@pytest.mark.parametrize(("quota", "cores"), [(1.5, 1), (0.25, 1), (2.0, 2), (None, 4), (64.0, 4)])
def test_a_control_groups_quota_counts(monkeypatch, quota, cores):
    monkeypatch.setattr(machine, "_cgroup_quota", lambda: quota)
    assert machine.cores_allowed.__wrapped__(4) == cores


ROOT = "/sys/fs/cgroup"
SYSTEMD = "0::/user.slice/u.service\n"  # as it is where no container hides what is above
SLURM = "9:name=systemd:/\n4:cpuacct,cpu:/slurm/uid_1/job_7\n2:cpuset:/slurm\n"
CONTAINER = "0::/kubepods/pod1/ctr\n"  # the host's path, which is not there below the container's own mount
GROUPS = {
    "none": (SYSTEMD, {}, None),
    "at the root of the mount": (CONTAINER, {"cpu.max": "150000 100000\n"}, 1.5),
    "the process's own": (SYSTEMD, {"user.slice/u.service/cpu.max": "100000 100000", "user.slice/cpu.max": "max 1"}, 1),
    "further up": (SYSTEMD, {"user.slice/u.service/cpu.max": "max 100000", "user.slice/cpu.max": "300000 100000"}, 3),
    "the least of several": (SYSTEMD, {"user.slice/u.service/cpu.max": "8 1", "user.slice/cpu.max": "2 1",
        "cpu.max": "4 1"}, 2),
    "of another process": (SYSTEMD, {"user.slice/v.service/cpu.max": "1 1"}, None),
    "version 1, further up": (SLURM, {"cpu,cpuacct/slurm/uid_1/cpu.cfs_quota_us": "250000\n",
        "cpu,cpuacct/slurm/uid_1/cpu.cfs_period_us": "100000\n",
        "cpu,cpuacct/slurm/uid_1/job_7/cpu.cfs_quota_us": "-1\n",
        "cpu,cpuacct/slurm/uid_1/job_7/cpu.cfs_period_us": "100000\n"}, 2.5),
    "version 1, a container's": ("4:cpu:/docker/abc\n", {"cpu/cpu.cfs_quota_us": "50000",
        "cpu/cpu.cfs_period_us": "100000"}, 0.5),
    "version 2 beside version 1": ("0::/x\n1:cpuset:/\n", {"unified/x/cpu.max": "3 2"}, 1.5),
    "both versions": ("0::/x\n1:cpu:/x\n", {"unified/x/cpu.max": "3 1", "cpu/x/cpu.cfs_quota_us": "2",
        "cpu/x/cpu.cfs_period_us": "1"}, 2),
    "another controller's path": ("1:cpuset:/x\n2:cpu:/\n", {"cpu/x/cpu.cfs_quota_us": "1",
        "cpu/x/cpu.cfs_period_us": "1"}, None),
    "a path with a colon": ("0::/a:b\n", {"a:b/cpu.max": "3 1"}, 3),
    "nonsense": ("0\n::\n", {"cpu.max": "1 0", "cpu/cpu.cfs_quota_us": "many", "cpu/cpu.cfs_period_us": ""}, None),
    "no /proc": (None, {"cpu.max": "2 1"}, 2),
}  # fmt: skip


@pytest.fixture
def files(monkeypatch):
    """The control groups' files by name, in place of this machine's."""
    files: dict[str, str] = {}

    def read_text(path, *_, **__):
        try:
            return files[str(path)]
        except KeyError:
            raise FileNotFoundError(str(path)) from None

    monkeypatch.setattr(Path, "read_text", read_text)
    return files


@pytest.mark.parametrize("where", GROUPS)
def test_a_quota_counts_wherever_it_is(files, where):
    own, limits, quota = GROUPS[where]
    files |= {f"{ROOT}/{name}": text for name, text in limits.items()}
    if own is not None:
        files["/proc/self/cgroup"] = own
    assert machine._cgroup_quota() == quota


def test_a_group_further_up_that_was_stopped_counts(files):
    files["/proc/self/cgroup"] = SYSTEMD
    files[f"{ROOT}/user.slice/u.service/cpu.stat"] = "nr_periods 10\nnr_throttled 1\n"
    files[f"{ROOT}/user.slice/cpu.stat"] = "nr_periods 10\nnr_throttled 4\n"
    assert doctor._throttled(machine.control_groups()) == 0.4


def test_without_a_home_the_peaks_go_to_the_temporary_folder(monkeypatch, tmp_path):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("RNNPAR_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "rnnpar" / "machine.py"))
    monkeypatch.setattr(machine.Path, "home", homeless)
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    assert machine.folder() == tmp_path / "tmp" / "rnnpar" / machine.name()
