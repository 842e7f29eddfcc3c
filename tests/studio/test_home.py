"""A home: made, moved, damaged, closed to us; preferences, roots, paths that a page names."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from pathlib import Path

import pytest

from job_homes import run_settings
from loraloom.errors import FileError, FileFormatError, MissingFileError, OutputError, UnknownNameError
from loraloom.events import Event, Notice
from loraloom.studio.database import Database
from loraloom.studio.home import Home, HomeLock, recognise_layout
from loraloom.studio.runs.creation import create_run
from loraloom.studio.runs.folder import with_each_path
from loraloom.training.settings import TrainSettings


def test_a_home_is_made_once_and_opened_again(tmp_path: Path) -> None:
    assert not Home.is_there(tmp_path / "new")
    home = Home.open(tmp_path / "new")
    assert Home.is_there(tmp_path / "new") and home.notices == ()
    assert sorted(path.name for path in home.path.iterdir() if path.is_dir()) == ["datasets", "jobs", "outputs", "runs"]
    home.preferences["theme"] = "dark"
    home.preferences["columns"] = {"loss": True, "width": 3}
    home.close()

    again = Home.open(tmp_path / "new")
    assert again.preferences["columns"] == {"loss": True, "width": 3} and again.preferences["theme"] == "dark"
    del again.preferences["theme"]
    assert list(home.preferences) == ["columns", "home.place"] and len(home.preferences) == 2, (
        "what was closed opens again, and sees what others wrote"
    )
    with pytest.raises(KeyError):
        del again.preferences["theme"]
    with pytest.raises(KeyError):
        again.preferences["nothing"]


def test_many_threads_write_one_after_another(tmp_path: Path) -> None:
    homes = [Home.open(tmp_path) for _ in range(3)]
    homes[0].preferences["count"] = 0

    def add(home: Home) -> None:
        for _ in range(20):
            with home.database.transaction() as connection:
                (value,) = connection.execute("SELECT value FROM preferences WHERE name = 'count'").fetchone()
                connection.execute("UPDATE preferences SET value = ? WHERE name = 'count'", (str(int(value) + 1),))

    threads = [threading.Thread(target=add, args=(home,)) for home in (*homes, *homes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert homes[2].preferences["count"] == 120


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    home = Home.open(tmp_path)
    home.preferences["a"] = 1

    def fail() -> None:
        with home.database.transaction() as connection:
            connection.execute("DELETE FROM preferences")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert home.preferences["a"] == 1


# -- a database that cannot be used ----------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["text", "middle"])
def test_a_damaged_database_is_kept_aside_and_a_new_one_begun(tmp_path: Path, damage: str) -> None:
    home = Home.open(tmp_path)
    for number in range(200):
        home.preferences[f"name-{number}"] = "x" * 100
    home.close()
    path = tmp_path / "studio.db"
    data = bytearray(path.read_bytes())
    if damage == "text":
        data[:] = b"this is no database at all\n" * 300
    else:
        data[4096 * 3 : 4096 * 5] = b"\xff" * 8192
    path.write_bytes(bytes(data))

    said: list[Event] = []
    again = Home.open(tmp_path, listener=said.append)
    (notice,) = said
    assert isinstance(notice, Notice) and notice.level == "warning" and again.notices == (notice,)
    (kept,) = tmp_path.glob("studio.db.damaged-*[0-9]")
    assert kept.name in notice.text and kept.read_bytes() == bytes(data)
    assert list(again.preferences) == ["home.place"]
    again.preferences["a"] = 1
    assert Home.open(tmp_path).notices == ()


def test_damage_that_shows_later_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    home = Home.open(tmp_path)
    home.close()
    home.database.path.write_bytes(b"no database " * 1000)
    with pytest.raises(FileFormatError, match="is damaged") as caught:
        _ = home.preferences["a"]
    assert "open it again" in caught.value.hint


def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    Home.open(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "studio.db")
    connection.execute("PRAGMA user_version = 99")
    connection.commit()
    connection.close()
    before = (tmp_path / "studio.db").read_bytes()
    with pytest.raises(FileError, match="newer version") as caught:
        Home.open(tmp_path)
    assert "another folder" in caught.value.hint and (tmp_path / "studio.db").read_bytes() == before
    assert not list(tmp_path.glob("*damaged*"))


def test_two_that_make_the_same_database_at_once_make_one(tmp_path: Path) -> None:
    made: list[Database] = []
    threads = [threading.Thread(target=lambda: made.append(Database(tmp_path / "x.db"))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 5
    assert {tuple(database.rows("SELECT name FROM sqlite_master WHERE name = 'jobs'")) for database in made} == {
        (("jobs",),)
    }


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="rights that root does not heed")
def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    Home.open(tmp_path / "home").close()
    (tmp_path / "home").chmod(0o500)
    try:
        with pytest.raises(OutputError, match="no permission"):
            Home.open(tmp_path / "home")
    finally:
        (tmp_path / "home").chmod(0o700)


def test_a_file_where_the_home_is_to_be(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("x", encoding="utf-8")
    with pytest.raises(OutputError, match="home"):
        Home.open(tmp_path / "home")


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    home = Home.open(tmp_path)
    home.preferences["a"] = 1
    pages = home.database.rows("PRAGMA page_count")[0][0]
    home.database.rows(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OutputError, match=r"studio\.db cannot be written") as caught:
        home.preferences["b"] = "x" * 100_000
    assert "free some space" in caught.value.hint
    home.database.rows("PRAGMA max_page_count = 100000")
    home.preferences["b"] = "x" * 100_000
    assert home.preferences["a"] == 1


# -- one process for one thing ---------------------------------------------------------------------------------------


def test_the_lock_of_a_home_is_had_once(tmp_path: Path) -> None:
    first, second = HomeLock(tmp_path, "server"), HomeLock(tmp_path, "server")
    assert not second.is_taken() and second.facts() is None
    with first:
        assert first.try_enter() and second.is_taken() and not second.try_enter()
        assert (second.facts() or {})["pid"] == os.getpid()
        with pytest.raises(FileError, match=f"open already, by process {os.getpid()}"), second:
            pass
        with HomeLock(tmp_path, "queue"):
            pass
    assert not first.is_taken()
    assert second.try_enter(port=7777)
    assert (first.facts() or {})["port"] == 7777
    second.leave()


# -- roots -----------------------------------------------------------------------------------------------------------


def made(folder: Path, *paths: str) -> Path:
    for path in paths:
        if path.endswith(".py"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text("", encoding="utf-8")
        else:
            (folder / path).mkdir(parents=True)
    return folder


A1111 = ("models/Stable-diffusion", "models/Lora", "models/VAE", "embeddings", "outputs", "modules")
LAYOUTS = {
    "automatic1111": A1111,
    "forge": (*A1111, "modules_forge"),
    "comfyui": ("models/checkpoints", "models/loras", "models/vae", "models/embeddings", "output", "custom_nodes"),
    "kohya": ("sd-scripts/train_network.py", "models", "outputs", "dataset"),
}


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("inside", ["", "ComfyUI/"])
def test_other_programs_are_known_by_their_folders(tmp_path: Path, kind: str, inside: str) -> None:
    folder = made(tmp_path / "program", *(inside + path for path in LAYOUTS[kind]))
    layout = recognise_layout(folder)
    assert layout is not None and layout.kind == kind and layout.folder == folder / inside
    assert layout.checkpoints and layout.loras
    if kind == "kohya":
        assert layout.datasets
    else:
        assert layout.embeddings and layout.vaes and layout.outputs
    for place in (*layout.checkpoints, *layout.loras, *layout.embeddings, *layout.vaes, *layout.outputs):
        assert place.is_dir()


def test_what_no_program_made_is_plain(tmp_path: Path) -> None:
    assert recognise_layout(made(tmp_path / "a", "models", "img", "pictures")) is None
    assert recognise_layout(tmp_path / "nothing") is None
    home = Home.open(tmp_path / "home")
    root = home.add_root(tmp_path / "a")
    assert root.kind == "plain" and root.layout is None


def test_names_of_folders_are_compared_in_any_case(tmp_path: Path) -> None:
    layout = recognise_layout(made(tmp_path, "Models/stable-diffusion", "Models/lora"))
    assert layout is not None and layout.kind == "automatic1111"
    assert [path.name for path in (*layout.checkpoints, *layout.loras)] == ["stable-diffusion", "lora"]


def test_what_kohya_prepares_for_one_training(tmp_path: Path) -> None:
    layout = recognise_layout(made(tmp_path, "img/10_cat", "model", "log", "reg"))
    assert layout is not None and layout.kind == "kohya"
    assert [path.name for path in layout.loras] == ["model"]
    assert [path.name for path in layout.datasets] == ["img", "reg"]


def test_roots_are_added_once_and_forgotten(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home")
    first = home.add_root(made(tmp_path / "one" / "webui", *A1111))
    other = home.add_root(made(tmp_path / "two" / "webui", "models"))
    assert (first.kind, first.name, other.kind, other.name) == ("automatic1111", "webui", "plain", "webui-2")
    assert home.add_root(tmp_path / "one" / "webui") == first
    assert [root.name for root in home.roots] == ["home", "webui", "webui-2"]
    assert home.add_root(home.path) == home.root("home") == home.root(0)
    with pytest.raises(MissingFileError, match="no such folder"):
        home.add_root(tmp_path / "nothing")
    home.forget_root("webui")
    assert [root.id for root in home.roots] == [0, other.id]
    for name in ("webui", "home", 77):
        with pytest.raises(UnknownNameError, match="unknown root"):
            home.forget_root(name)


def test_a_home_that_was_moved_brings_the_settings_of_its_runs_along(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home")
    elsewhere = tmp_path / "models" / "base.safetensors"
    settings = run_settings(elsewhere).model_copy(update={"output": home.runs})
    settings = with_each_path(settings, lambda path: home.path / path)
    run, other = create_run(settings).path, create_run(settings.model_copy(update={"name": "other"})).path
    (other / "settings.toml").write_text("name = 3\n", encoding="utf-8")
    home.close()
    home.path.rename(tmp_path / "moved")
    (notice,) = Home.open(tmp_path / "moved").notices
    assert str(home.path) in notice.text and "1 runs" in notice.text
    found = TrainSettings.load(tmp_path / "moved" / "runs" / run.name / "settings.toml")
    assert found.dataset.folder == tmp_path / "moved" / "datasets" / "drawings" and found.checkpoint == elsewhere
    assert found.output == tmp_path / "moved" / "runs"
    assert Home.open(tmp_path / "moved").notices == ()


def test_a_home_that_was_moved_knows_what_is_inside_it(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home")
    inside, outside = made(home.path / "models", "x"), made(tmp_path / "elsewhere", "x")
    home.add_root(inside)
    home.add_root(outside)
    home.close()
    home.path.rename(tmp_path / "moved")
    again = Home.open(tmp_path / "moved")
    assert [root.path for root in again.roots[1:]] == [tmp_path / "moved" / "models", outside]


TRICKS = [
    *("../x", "a/../../x", "/etc/passwd", "..", "a\\..\\..\\x", "\\x", "C:\\x", "C:x", "\\\\host\\share\\x", "a\0b"),
    *("//host/share/x", "~/../../x", "./../x", "a/b/../../../x", "C:/x", "..\\x", "a/..\\..\\x"),
]


@pytest.mark.parametrize("relative", TRICKS)
def test_a_path_that_leaves_its_root_is_refused(tmp_path: Path, relative: str) -> None:
    home = Home.open(tmp_path / "home")
    with pytest.raises(FileError, match="is no path inside"):
        home.resolve("home", relative)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_links_are_followed_but_not_out_of_the_root(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home")
    (tmp_path / "secret.txt").write_text("x", encoding="utf-8")
    (home.outputs / "out").symlink_to(tmp_path)
    (home.outputs / "in").symlink_to(home.datasets)
    (home.outputs / "round").symlink_to(home.outputs / "round")
    for path in ("outputs/out/secret.txt", "outputs/out", "outputs/round", "outputs/round/x"):
        with pytest.raises(FileError, match="is no path inside"):
            home.resolve(0, path)
    assert home.resolve(0, "outputs/in/a.png") == home.datasets.resolve() / "a.png"


def test_paths_inside_a_root(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home")
    root = home.add_root(made(tmp_path / "other", "x"))
    base = (tmp_path / "other").resolve()
    assert home.resolve(root.id, "x/bild ä.png") == home.resolve(str(root.id), "x/bild ä.png") == base / "x/bild ä.png"
    assert home.resolve("other", "") == home.resolve("other", ".") == base
    assert home.resolve("other", "~/x") == base / "~" / "x"
    assert home.resolve("other", "a..b/c") == base / "a..b" / "c"
    with pytest.raises(UnknownNameError, match="unknown root"):
        home.resolve("nothing", "x")
