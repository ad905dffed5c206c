"""Files and folders appear whole or not at all, and refusals of the system come in three parts."""

import errno
import os
import subprocess
import sys

import pytest

from vosnb import InputError
from vosnb.files import HOST, replacing, replacing_folder, scratch


def test_a_file_appears_when_it_is_complete(tmp_path):
    with replacing(tmp_path / "deep" / "a.txt") as temporary:
        temporary.write_text("half")
        assert not (tmp_path / "deep" / "a.txt").exists() and temporary.suffix == ".txt"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(KeyError), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        raise KeyError
    assert (tmp_path / "a.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_appears_when_it_is_complete_and_replaces_only_when_told(tmp_path):
    with replacing_folder(tmp_path / "f") as temporary:
        (temporary / "1").touch()
    with pytest.raises(InputError, match="new or empty"), replacing_folder(tmp_path / "f"):
        pass
    with replacing_folder(tmp_path / "f", overwrite=True) as temporary:
        (temporary / "2").touch()
    assert [p.name for p in (tmp_path / "f").iterdir()] == ["2"] and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="room on the disk"), replacing(tmp_path / "a") as temporary:
        temporary.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="writable place"), replacing(tmp_path / "file" / "a"):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="writable place"), replacing(tmp_path / "folder"):
        pass


def test_no_permission_is_said(tmp_path):
    with pytest.raises(InputError, match="allowed to write"), replacing(tmp_path / "a"):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_what_a_killed_process_left_is_swept_and_what_others_write_is_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    other_machine = f".f.elsewhere-{dead.pid}-0.part"
    for name in (f".f.{HOST}-{dead.pid}-0.part", f".f.{HOST}-{os.getppid()}-0.part", other_machine):
        (tmp_path / name).mkdir()
    with replacing_folder(tmp_path / "f"), replacing_folder(tmp_path / "g"):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {f".f.{HOST}-{os.getppid()}-0.part", other_machine, "f", "g"}


def test_what_a_killed_making_of_a_film_left_is_swept(tmp_path):
    """The half film, and the folder with what was downloaded for it."""
    code = """import os, sys; from vosnb.files import replacing, scratch
with replacing(sys.argv[1]) as temporary, scratch(sys.argv[1]) as folder:
    temporary.touch(); (folder / "film.webm").touch(); os._exit(9)"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.b.mp4"])
    assert len(list(tmp_path.iterdir())) == 2
    with replacing(tmp_path / "a.b.mp4") as temporary, scratch(tmp_path / "a.b.mp4") as folder:
        temporary.touch()
        assert folder.is_dir() and len(list(tmp_path.iterdir())) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a.b.mp4"]


def test_two_writers_of_one_name_in_one_process_do_not_meet(tmp_path):
    with replacing(tmp_path / "a") as one:
        one.write_text("1")
        with replacing(tmp_path / "a") as two:
            two.write_text("2")
        assert (tmp_path / "a").read_text() == "2"
    assert (tmp_path / "a").read_text() == "1"
