"""The command and its surroundings: closed streams, signals, names, permissions, endless input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lichen import cli, commands, files
from lichen import model as models
from lichen.cli import main

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX shells and signals")
MICRO = Path(__file__).parent / "conformance" / "vectors" / "models" / "micro.safetensors"
LICHEN = f"{sys.executable} -m lichen"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save("in.png")
    return tmp_path


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell's line in which L is lichen and M says which model."""
    line = command.replace("L ", f"{LICHEN} ", 1).replace(" M ", f" --model {MICRO} ", 1)
    environment = {**os.environ, **variables}
    return subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, env=environment, timeout=300
    )


def test_a_closed_stderr_leaves_stdout_to_the_stream() -> None:
    whole = shell("L encode M in.png -")
    silent = shell("L encode M in.png - 2>&-")
    assert (whole.returncode, silent.returncode) == (0, 0)
    assert silent.stdout == whole.stdout
    assert shell("L encode M missing.png - 2>&-").returncode == 3


def test_a_closed_stdout() -> None:
    done = shell("L encode M in.png out.lic >&-")
    assert (done.returncode, done.stderr) == (0, b"")
    verified = main(["verify", "--model", str(MICRO), "out.lic"])
    assert verified == 0, "something was printed into the stream"
    done = shell("L encode M in.png - >&-")
    assert done.returncode == 3 and done.stderr == b"lichen: error: standard output: is closed\n"


def test_a_closed_stdin() -> None:
    done = shell("L encode M - out.lic <&-")
    assert done.returncode == 3 and done.stderr == b"lichen: error: standard input: is closed\n"
    assert not Path("out.lic").exists()


def test_other_names_of_stdout_and_pipes() -> None:
    whole = shell("L encode M in.png -").stdout
    for name in ("/dev/stdout", "/dev/fd/1"):
        if Path(name).exists():
            assert shell(f"L encode M in.png {name} | cat").stdout == whole
    os.mkfifo("pipe")
    assert shell("(L encode --quiet M in.png pipe) & cat pipe; wait").stdout == whole


def test_names_that_are_not_unicode() -> None:
    name = os.fsdecode(b"caf\xe9")
    try:
        os.rename("in.png", f"{name}.png")
    except OSError:
        pytest.skip("this file system has Unicode names only")
    for encoding in ("utf-8:strict", "ascii:strict"):  # a user's locale; the C locale
        done = shell("L encode M caf*.png && ls", PYTHONIOENCODING=encoding)
        assert done.returncode == 0 and b"caf\xe9.lic\n" in done.stdout, done
    done = shell("L info caf*.lic missing.lic", PYTHONIOENCODING="utf-8:strict")
    assert done.returncode == 3 and b"quality 50" in done.stdout


@pytest.mark.parametrize("letter", ["n", "\u5730"])  # of one byte and of three
def test_the_longest_name(letter: str) -> None:
    name = letter * (251 // len(letter.encode())) + ".lic"
    assert main(["encode", "--model", str(MICRO), "in.png", name]) == 0
    assert sorted(os.listdir()) == sorted(["in.png", name])


def test_sigterm_ends_it_and_removes_what_is_half_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(files.os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["encode", "--model", str(MICRO), "in.png"]) == 143
    assert os.listdir() == ["in.png"]
    assert capsys.readouterr().out == ""
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_sigterm_while_it_waits() -> None:
    command = [*LICHEN.split(), "encode", "--model", str(MICRO), "-", "out.lic"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        while not _catches(child.pid, signal.SIGTERM):
            time.sleep(0.05)
            assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=300)
    assert child.returncode == 143 and said == b""


def _catches(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_bytes()
    line = next(x for x in status.splitlines() if x.startswith(b"SigCgt:"))
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def test_an_ignored_sigterm_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "COMMANDS", {"models": lambda _: os.kill(os.getpid(), 15) or 0})
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert main(["models"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_permissions_of_what_is_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    out = Path("in.lic")
    out.write_bytes(b"old")
    out.chmod(0o600)
    assert main(["encode", "--model", str(MICRO), "in.png"]) == 0
    assert out.stat().st_mode & 0o777 == 0o600 and out.read_bytes() != b"old"


def test_a_read_only_output_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path("in.lic")
    out.write_bytes(b"old")
    out.chmod(0o444)
    if os.geteuid() == 0:  # who may write anything
        monkeypatch.setattr(files.os, "access", lambda path, mode: not mode & os.W_OK)
    assert main(["encode", "--model", str(MICRO), "in.png"]) == 3
    assert "in.lic: is read-only" in capsys.readouterr().err
    assert out.read_bytes() == b"old" and len(os.listdir()) == 2


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero")
@pytest.mark.parametrize("command", ["decode", "info", "verify"])
def test_endless_input_that_is_no_stream(command: str) -> None:
    assert shell(f"ulimit -v 4000000; L {command} /dev/zero").returncode == 1
    done = shell(f"yes | L {command} -")
    assert done.returncode == 1 and b"not a lichen stream" in done.stderr


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero")
def test_endless_input_that_might_be_a_picture() -> None:
    for words in ("- </dev/zero", "/dev/zero x.lic"):
        done = shell(f"ulimit -v 4000000; L encode --max-pixels 1 {words}")
        assert b"goes on after 67108882 bytes, more than a picture of 1 pixels" in done.stderr
        assert done.stdout == b"" and done.returncode == 3
    Path("in.lic").write_bytes(shell("L encode M in.png -").stdout)
    for command in ("decode", "verify"):
        done = shell(f"cat in.lic /dev/zero | L {command} --max-pixels 1 -")
        assert done.returncode == 3 and b"standard input: goes on after" in done.stderr
    # a file has an end: it may hold a picture of many frames, or much else
    Path("long.png").write_bytes(Path("in.png").read_bytes() + bytes(files.METADATA_BYTES_MAX))
    assert len(files.read("long.png", max_pixels=1)) > files.METADATA_BYTES_MAX
    assert sorted(os.listdir()) == ["in.lic", "in.png", "long.png"]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("late", [True, False])
def test_no_overwrite_when_the_name_is_taken_meanwhile(
    links: bool, late: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    link = os.link

    def linked(source: Path, target: Path) -> None:
        if late:  # after every check
            Path("out.lic").write_bytes(b"of another")
        if not links:
            raise PermissionError(1, "Operation not permitted")
        link(source, target)

    monkeypatch.setattr(files.os, "link", linked)
    code = main(["encode", "--model", str(MICRO), "--no-overwrite", "in.png", "out.lic"])
    assert sorted(os.listdir()) == ["in.png", "out.lic"]
    if late:
        assert code == 3 and "out.lic: would be overwritten" in capsys.readouterr().err
        assert Path("out.lic").read_bytes() == b"of another"
    else:
        assert code == 0 and main(["verify", "--model", str(MICRO), "out.lic"]) == 0


def test_a_second_picture_is_not_taken_for_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    pixels = Path("in.png").read_bytes()
    Path("other.PNG").write_bytes(pixels)
    assert main(["encode", "--model", str(MICRO), "in.png", "other.PNG"]) == 2
    assert "one picture at a time" in capsys.readouterr().err
    assert Path("other.PNG").read_bytes() == pixels
    assert main(["encode", "--model", str(MICRO), "in.png", "other.bin"]) == 0


def test_nothing_to_do_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "commands:" in err and "exit codes:" in err


def test_what_is_wrong_with_a_model_is_said_with_its_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["encode", "--model", "in.png", "in.png"]) == 4
    assert "in.png: a model file needs" in capsys.readouterr().err


def test_messages_hold_no_controls_for_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    model = replace(models.read(MICRO), name="evil\x1b[2J\nname")
    Path("evil.safetensors").write_bytes(model.to_bytes())
    assert main(["encode", "--model", str(MICRO), "in.png", "in.lic"]) == 0
    capsys.readouterr()
    assert main(["decode", "--model", "evil.safetensors", "in.lic", "out.png"]) == 4
    assert "evil\\x1b[2J name" in capsys.readouterr().err


def test_refused_threads_are_no_bug_to_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lichen.errors import DeviceError

    def refuse(*_: object, **__: object) -> None:
        raise DeviceError("4 threads were refused by the system: ask for fewer")

    monkeypatch.setattr(commands, "Codec", refuse)
    assert main(["encode", "--model", str(MICRO), "in.png"]) == 6
    said = capsys.readouterr().err
    assert said == "lichen: error: 4 threads were refused by the system: ask for fewer\n"


def test_the_default_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the first in the alphabet: student-m comes before student-s."""
    names = ["student-a", models.DEFAULT, "zou"]
    found = [Path(f"{name}.safetensors") for name in names]
    monkeypatch.setattr(models.Path, "glob", lambda *_: iter(found))
    assert [path.stem for path in models.installed()] == [models.DEFAULT, "student-a", "zou"]
