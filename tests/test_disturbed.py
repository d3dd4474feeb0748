"""Commands that are killed, or that can no longer write: nothing half written stands under a final name, a
refusal is one line and exit status 2, and the same command later gives what an undisturbed run gives."""

import builtins
import errno
import os
import random
import resource
import subprocess
from pathlib import Path

import pytest
from commands_that_write import COMMANDS, Place, make_place

KILLS = int(os.environ.get("DICE_TEST_KILLS", "3"))  # of each command

pytestmark = [
    pytest.mark.slow,  # the locks of the sanitizers do not survive a fork with threads
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield from make_place(tmp_path_factory.mktemp("place"), patch)


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_any_moment(command: str, place: Place) -> None:
    place.clear(command)
    place.undisturbed(command)
    place.clear(command)
    seconds = place.undisturbed(command).seconds
    assert place.whole[command], "the command writes nothing"
    rng = random.Random(command)
    place.clear(command)
    killed = 0
    for number in range(KILLS):
        killed += place.run(command, kill_after=rng.uniform(0, seconds)).status < 0
        place.check(command)
        if number % 3 == 2:  # else on top of what the killed run left
            place.undisturbed(command)
            place.clear(command)
    place.undisturbed(command)
    assert killed > 0 or KILLS < 10


def refused(ended, words: str) -> None:
    """Exit status 2; the last line says why; for several downloads, the lines before it do."""
    assert ended.status == 2, ended
    lines = ended.said.splitlines()
    assert lines[-1].startswith("dice: error: ") and ended.said.count("error: ") == 1, ended.said
    assert words in (ended.said if "downloads failed" in lines[-1] else lines[-1]), ended.said
    assert "Traceback" not in ended.said and "fault of dice" not in ended.said


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("room", [0, 1500, 20_000])
def test_files_cannot_grow(command: str, room: int, place: Place) -> None:
    """As on a disk that is full, or with a quota; files of `room` bytes can still be written."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))

    place.clear(command)
    place.undisturbed(command)
    place.clear(command)
    ended = place.run(command, before=limit)
    place.check(command)
    if room < max(map(len, place.whole[command].values())):
        refused(ended, os.strerror(errno.EFBIG))
    else:
        assert ended.status in (0, 2), ended
    place.undisturbed(command)


@pytest.mark.parametrize("command", COMMANDS)
def test_permission_is_lost_midway(command: str, place: Place, monkeypatch) -> None:
    """From the n-th file on that a command opens for writing under `out`, for every n."""
    place.clear(command)
    place.undisturbed(command)
    refusals = 0
    for n in range(1, 200):
        place.clear(command)
        ended = place.run(command, before=lambda n=n: _lose_permission(place.home / "out", n))
        place.check(command)
        if ended.status == 0:
            break
        refused(ended, os.strerror(errno.EACCES))
        refusals += 1
        if n % 4 == 1:
            place.undisturbed(command)
    assert ended.status == 0 and refusals > 0
    assert place.left() == place.whole[command]


def _lose_permission(out: Path, n: int) -> None:
    allowed, opened = n - 1, builtins.open

    def checked(file, mode="r", *args, **kwargs):
        nonlocal allowed
        if set(mode) & set("wxa+") and out in Path(os.path.abspath(file)).parents:
            if allowed == 0:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
            allowed -= 1
        return opened(file, mode, *args, **kwargs)

    builtins.open = checked


@pytest.fixture
def small_disk(place: Place):
    """Mounts a file system over `out`; called with its size, it resizes it and changes its other options."""
    out = place.home / "out"
    place.clear("eval")
    out.mkdir(exist_ok=True)

    def mount(options: str) -> None:
        remount = "remount," if out.is_mount() else ""
        subprocess.run(["mount", "-t", "tmpfs", "-o", remount + options, "tmpfs", out], check=True)

    try:
        mount("size=96m")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount a file system")
    yield mount
    subprocess.run(["umount", out], check=True)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("pages", [0, 2, 10])
def test_a_full_disk(command: str, pages: int, place: Place, small_disk) -> None:
    place.clear(command)
    place.undisturbed(command)
    place.clear(command)
    full = _fill(place.home / "out", pages)
    ended = place.run(command)
    full.unlink()
    place.check(command)
    if ended.status or pages == 0:  # a download looks for room before
        refused(ended, "make room" if command == "download" else os.strerror(errno.ENOSPC))
    place.undisturbed(command)


def _fill(folder: Path, pages: int) -> Path:
    """Makes a file that leaves so many pages of memory free on the disk of `folder`."""
    status, path = os.statvfs(folder), folder / "full"
    with open(path, "wb") as file:
        os.posix_fallocate(
            file.fileno(), 0, status.f_bavail * status.f_frsize - pages * resource.getpagesize()
        )
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_is_read_only(command: str, place: Place, small_disk) -> None:
    place.clear(command)
    place.undisturbed(command)
    place.clear(command)
    small_disk("ro,size=96m")
    refused(place.run(command), os.strerror(errno.EROFS))
    small_disk("rw,size=96m")
    place.undisturbed(command)


def test_what_was_computed_before_the_disk_was_full_is_kept(place: Place, small_disk) -> None:
    """Features that were stored are not computed again."""
    place.clear("eval")
    place.undisturbed("eval")
    place.clear("eval")
    full = _fill(place.home / "out", 12)
    ended = place.run("eval")
    refused(ended, "what is finished is kept")
    stored = [name for name in place.left() if name.endswith(".npz")]
    assert stored
    times = {name: (place.home / "out" / name).stat().st_mtime_ns for name in stored}
    full.unlink()
    place.undisturbed("eval")
    assert times == {name: (place.home / "out" / name).stat().st_mtime_ns for name in stored}
