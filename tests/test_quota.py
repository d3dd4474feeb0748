"""The default number of threads: affinity and the CPU quotas of cgroups v1 and v2, in made-up folders."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dice import _core

V2 = "31 23 0:28 {part} {place} rw,relatime shared:9 - cgroup2 cgroup2 rw"
V1 = "32 31 0:29 {part} {place} rw - cgroup cgroup rw,cpuacct,cpu"


def tree(root: Path, group: str, mounts: list[str], files: dict[str, str]) -> int:
    """What the core reads from the files of a system whose /proc/self has these lines."""
    proc = root / "proc/self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text(group)
    (proc / "mountinfo").write_text("\n".join(["23 1 8:1 / / rw - ext4 /dev/sda1 rw", *mounts]) + "\n")
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return _core._quota_processors(str(root))


@pytest.mark.parametrize(
    ("text", "processors"),
    [
        ("max 100000\n", 0),
        ("100000 100000\n", 1),
        ("1000 100000\n", 1),
        ("150000 100000\n", 2),
        ("200000 100000\n", 2),
        ("200001 100000\n", 3),
        ("50000 25000\n", 2),
        ("9000000000000 1\n", 0),
        ("-1 100000\n", 0),
        ("100000 0\n", 0),
        ("100000", 0),
        ("", 0),
        ("\0" * 5000, 0),
    ],
)
def test_a_quota_is_rounded_up_to_processors(tmp_path, text, processors):
    mount = V2.format(part="/", place="/sys/fs/cgroup")
    assert tree(tmp_path, "0::/\n", [mount], {"sys/fs/cgroup/cpu.max": text}) == processors


@pytest.mark.parametrize(
    ("quota", "period", "processors"),
    [("-1", "100000", 0), ("250000", "100000", 3), ("50000", "100000", 1), ("50000", None, 0), ("x", "1", 0)],
)
def test_version_1(tmp_path, quota, period, processors):
    files = {"sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": quota}
    if period is not None:
        files["sys/fs/cgroup/cpu/pod/cpu.cfs_period_us"] = period
    mount = V1.format(part="/", place="/sys/fs/cgroup/cpu")
    assert tree(tmp_path, "4:memory:/pod\n3:cpu,cpuacct:/pod\n", [mount], files) == processors


def test_a_controller_whose_name_only_begins_alike_is_another(tmp_path):
    mount = V1.format(part="/", place="/cpu").replace("cpuacct,cpu", "cpuset")
    files = {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}
    assert tree(tmp_path / "a", "3:cpu:/\n", [mount], files) == 0
    assert tree(tmp_path / "b", "3:cpuset:/\n", [V1.format(part="/", place="/cpu")], files) == 0


def test_the_smallest_quota_of_nested_groups_counts(tmp_path):
    mount = V2.format(part="/", place="/cg")
    files = {
        "cpu.max": "100000 100000",  # of no group
        "cg/a/cpu.max": "300000 100000",
        "cg/a/b/cpu.max": "max 100000",
        "cg/a/b/c/cpu.max": "800000 100000",
        "cg/a/b/c/d/cpu.max": "200000 100000",  # of a group below
        "cg/other/cpu.max": "100000 100000",
    }
    assert tree(tmp_path, "0::/a/b/c\n", [mount], files) == 3


@pytest.mark.parametrize(
    ("group", "part"),
    [
        ("/docker/7f", "/docker/7f"),  # a container that sees the host's paths
        ("/", "/"),  # a cgroup namespace
        ("/../7f", "/.."),
        ("/other", "/docker/7f"),
        ("/docker/7f8", "/docker/7f"),
    ],
)
def test_where_the_group_is_the_mount_point_itself(tmp_path, group, part):
    mount = V2.format(part=part, place="/cg")
    files = {"cg/cpu.max": "400000 100000", "cg/7f/cpu.max": "1 1", "cg/docker/7f/cpu.max": "1 1"}
    assert tree(tmp_path, f"0::{group}\n", [mount], files) == 4


def test_a_group_below_the_part_that_is_mounted(tmp_path):
    mount = V2.format(part="/docker/7f", place="/cg")
    files = {"cg/cpu.max": "400000 100000", "cg/sub/cpu.max": "100000 100000"}
    assert tree(tmp_path, "0::/docker/7f/sub\n", [mount], files) == 1


def test_both_versions_and_names_with_blanks(tmp_path):
    mounts = [V1.format(part="/", place=r"/a\040b"), V2.format(part="/", place="/unified")]
    files = {
        "a b/x/cpu.cfs_quota_us": "250000",
        "a b/x/cpu.cfs_period_us": "100000",
        "unified/x/cpu.max": "600000 100000",
    }
    assert tree(tmp_path, "5:cpu:/x\n0::/x\n", mounts, files) == 3


@pytest.mark.parametrize(
    ("group", "mount"),
    [
        ("", ""),
        ("0\n:\n0:\n::::\n\n", "- - -\n - cgroup2\n31 - cgroup2 cgroup2 rw"),
        ("0::/" + "a" * 9000 + "\n", V2.format(part="/", place="/" + "b" * 9000)),
        ("0::/", "x" * 9000),
    ],
)
def test_other_files_tell_of_no_quota(tmp_path, group, mount):
    assert tree(tmp_path, group, [mount], {}) == 0
    assert _core._quota_processors(str(tmp_path / "none")) == 0
    assert _core._quota_processors("x" * 9000) == 0


THREADS = "from dice import _core; print(_core.threads_count())"


def default_threads(*before: str, code: str = "") -> int:
    """The default of a new process, which first runs `code`, started by the command `before`."""
    ran = subprocess.run(
        [*before, sys.executable, "-c", code + THREADS],
        env={key: value for key, value in os.environ.items() if key != "DICE_THREADS"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(ran.stdout)


def test_affinity_makes_the_default():
    one = min(os.sched_getaffinity(0))
    assert default_threads(code=f"import os; os.sched_setaffinity(0, [{one}]); ") == 1
    quota = _core._quota_processors("") or 256
    assert default_threads() == min(len(os.sched_getaffinity(0)), quota, 256)


def test_a_quota_makes_the_default(tmp_path):
    """A folder with a quota of one processor is mounted where the control groups are, for one process."""
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    cpu = [line[4] for line in lines if line[-3] == "cgroup" and "cpu" in line[-1].split(",")]
    places = cpu or [line[4] for line in lines if line[-3] == "cgroup2"]
    files = {"cpu.max": "100000 100000", "cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "100000"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    mount = f'mount --bind "{tmp_path}" "{places[0] if places else "none"}" && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    if not places or subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs control groups, and the right to mount over them")
    assert default_threads(*command) == 1
