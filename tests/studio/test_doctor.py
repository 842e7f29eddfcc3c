"""What the doctor finds, under conditions that are made real where they can be: files, folders, programs on PATH."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from loraloom.actions import Action
from loraloom.cli.words import worded
from loraloom.events import Event, RunFinished, RunStarted, StepFinished
from loraloom.formats.tensors import write_tensors
from loraloom.formats.unfinished import unfinished_file
from loraloom.studio import library
from loraloom.studio.doctor import device, packages, places, system, work
from loraloom.studio.doctor.checks import CHECKS, examine, worst
from loraloom.studio.doctor.device import accelerator_findings
from loraloom.studio.doctor.finding import Finding, Machine, State
from loraloom.studio.doctor.nvidia import Driver, ask_driver
from loraloom.studio.doctor.torch_process import DeviceFacts, TorchFacts, TorchProcess
from loraloom.studio.home import Home
from loraloom.studio.runs.log import EventLog
from random_loras import random_lora

posix = pytest.mark.skipif(sys.platform == "win32", reason="a program on PATH that is a script")
GIB = 2**30


@pytest.fixture(scope="module")
def asked() -> Iterator[TorchProcess]:
    """The torch of this machine, asked once."""
    process = TorchProcess()
    yield process
    process.close()


@pytest.fixture
def machine(tmp_path: Path, asked: TorchProcess) -> Machine:
    for name in ("folder", "cache", "data"):
        (tmp_path / name).mkdir()
    index = tmp_path / "data" / "library.sqlite"
    return Machine(tmp_path / "folder", tmp_path / "cache", tmp_path / "data", index, torch=asked)


def only(findings: Iterable[Finding]) -> Finding:
    """The one finding that there is."""
    found = list(findings)
    assert len(found) == 1, found
    return found[0]


def test_every_check_is_in_the_table() -> None:
    written = {
        check
        for module in (device, packages, places, system, work)
        for name, check in inspect.getmembers(module, inspect.isfunction)
        if name.startswith("check_")
    }
    assert written == set(CHECKS)


def test_what_the_system_refuses_is_a_problem_and_the_other_checks_go_on(machine: Machine) -> None:
    machine.package = machine.folder / "gone.py"
    found = list(examine(machine, (system.check_clock, system.check_python)))
    assert [finding.name for finding in found] == ["clock", "Python"]
    assert found[0].state == "problem" and "gone.py" in found[0].found
    assert (worst(found), worst(found[1:]), worst([])) == ("problem", "good", "good")


# -- torch and the graphics card


def test_the_torch_of_this_machine_is_asked_in_a_process_of_its_own(machine: Machine) -> None:
    facts = machine.torch.facts()
    assert not facts.problem and facts.version.split("+")[0] == version("torch").split("+")[0]
    assert all(each.problem or each.precision for each in facts.devices)
    found = only(device.check_torch(machine))
    assert found.state == "good" and facts.version in found.found


@pytest.mark.parametrize(
    ("source", "found", "advice"),
    [
        ("raise OSError('[WinError 126] no module; Error loading \"c10.dll\"')", "WinError 126", "Visual C++"),
        ("raise ModuleNotFoundError(\"No module named 'torch'\")", "No module named", "pip install torch"),
        ("import os; os._exit(7)", "code 7", "pip uninstall torch"),
        ("import sys; print('{}'); sys.exit(0)", "code 0", "pip uninstall torch"),
    ],
)
def test_a_torch_that_cannot_be_loaded(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, found: str, advice: str
) -> None:
    (tmp_path / "torch.py").write_text(source, encoding="utf-8")
    root = Path(str(sys.modules["loraloom"].__file__)).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(root)]))
    machine.torch = TorchProcess()
    told = only(device.check_torch(machine))
    assert told.state == "problem" and found in told.found and advice in told.advice
    assert list(device.check_accelerator(machine)) == []
    machine.torch.close()


SMI = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log><driver_version>550.54.14</driver_version><cuda_version>{cuda}</cuda_version>
<gpu id="00000000:01:00.0"><product_name>NVIDIA GeForce RTX 3060</product_name>
<product_architecture>Ampere</product_architecture></gpu></nvidia_smi_log>"""


def smi(folder: Path, output: str, code: int = 0) -> None:
    """A program of that name, which prints the text."""
    folder.mkdir(exist_ok=True)
    (folder / "answer").write_text(output, encoding="utf-8")
    program = folder / "nvidia-smi"
    program.write_text(f'#!/bin/sh\n/bin/cat "{folder}/answer"\nexit {code}\n', encoding="utf-8")
    program.chmod(0o755)


@posix
def test_a_card_that_a_build_for_the_cpu_does_not_use(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if machine.torch.facts().devices or machine.torch.facts().cuda:
        pytest.skip("this torch is not built for the CPU")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    smi(tmp_path / "bin", SMI.format(cuda="12.4"))
    found = only(device.check_accelerator(machine))
    assert found.state == "problem" and "RTX 3060 is there" in found.found and "built without CUDA" in found.found
    assert "build for CUDA 12.6" in found.advice and "pip uninstall torch" in found.advice
    smi(tmp_path / "bin", SMI.format(cuda="13.1"))
    assert "build for CUDA 13.0" in only(device.check_accelerator(machine)).advice
    smi(tmp_path / "bin", SMI.format(cuda="11.4"))
    assert only(device.check_accelerator(machine)).advice.startswith(
        "install NVIDIA's newest driver for the card, then"
    )


@posix
def test_the_driver_is_asked_through_its_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert ask_driver() is None
    smi(tmp_path / "bin", SMI.format(cuda="12.4"))
    assert ask_driver() == Driver("550.54.14", (12, 4), ("NVIDIA GeForce RTX 3060",), ("Ampere",))
    smi(tmp_path / "bin", "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", 9)
    broken = ask_driver()
    assert broken is not None and "couldn't communicate" in broken.problem
    found = only(accelerator_findings(TorchFacts("2.13.0", cuda="13.0"), broken))
    assert found.state == "problem" and "does not answer" in found.found
    smi(tmp_path / "bin", "", 3)
    assert (silent := ask_driver()) is not None and silent.problem == "nvidia-smi ended with code 3"
    # A program of that name in the present folder is a stranger's file.
    monkeypatch.chdir(tmp_path / "bin")
    monkeypatch.setenv("PATH", os.pathsep.join([".", ""]))
    assert ask_driver() is None


BUILD = TorchFacts("2.13.0", cuda="13.0", reason="the driver is too old (found version 12040)")
CARD = DeviceFacts("NVIDIA GeForce RTX 3060", "cuda", "8.6", 12 * GIB, 11 * GIB, "bf16")
DRIVER = Driver("550.54.14", (12, 4), ("RTX 3060",), ("Ampere",))


@pytest.mark.parametrize(
    ("facts", "driver", "state", "found", "advice"),
    [
        (replace(BUILD, devices=(CARD,)), DRIVER, "good", "computes (precision bf16), 11.8 GB of 12.9 GB free", ""),
        (replace(BUILD, devices=(replace(CARD, free=2 * GIB),)), DRIVER, "note", "2.1 GB of", "close other programs"),
        (replace(BUILD, devices=(replace(CARD, name="GTX 1660 Ti"),)), None, "note", "1660", "mixed_precision=no"),
        (BUILD, DRIVER, "problem", "runs CUDA 12 and earlier", "newest driver for the card; or install torch's build"),
        (BUILD, replace(DRIVER, cuda=(11, 4)), "problem", "built for CUDA 13.0", "newest driver for the card"),
        (BUILD, replace(DRIVER, architectures=("Blackwell",)), "problem", "built for CUDA 13", "newest driver for"),
        (
            BUILD,
            replace(DRIVER, cuda=(13, 0)),
            "problem",
            "does not see it: the driver is too old",
            "start the machine",
        ),
        (replace(BUILD, hip="6.4", cuda=""), None, "note", "none: the CPU computes", "slowly"),
    ],
)
def test_what_torch_and_the_driver_say_together(
    monkeypatch: pytest.MonkeyPatch, facts: TorchFacts, driver: Driver | None, state: State, found: str, advice: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    told = only(accelerator_findings(facts, driver))
    assert told.state == state and found in told.found and advice in told.advice and bool(told.advice) == bool(advice)


@pytest.mark.parametrize(
    ("capability", "cuda", "advice"),
    [
        ("6.1", "13.0", "build for CUDA 12.6"),
        ("12.0", "12.6", "build for CUDA 13.0"),
        ("8.6", "13.0", "newest driver"),
        ("6.1", "12.6", "newest driver"),
        ("", "", "newest driver"),
    ],
)
def test_a_card_that_the_build_has_no_code_for(capability: str, cuda: str, advice: str) -> None:
    card = replace(CARD, capability=capability, problem="CUDA error: no kernel image is available")
    told = only(accelerator_findings(TorchFacts("2.13.0", cuda=cuda, devices=(card,)), None))
    assert told.state == "problem" and "no kernel image" in told.found
    assert told.advice.startswith(f"install {'the' if 'driver' in advice else 'torch'}") and advice in told.advice


def test_a_card_that_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    told = only(accelerator_findings(BUILD, DRIVER))
    assert told.state == "note" and "CUDA_VISIBLE_DEVICES is '-1'" in told.found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert only(accelerator_findings(BUILD, DRIVER)).state == "problem"


# -- the system


@pytest.mark.parametrize(
    ("available", "limit", "state"),
    [(9e9, None, "good"), (3e9, None, "note"), (9e9, 2e9, "note"), (0.7e9, 8e9, "problem")],
)
def test_memory(available: float, limit: float | None, state: State) -> None:
    told = only(system.memory_findings(16_000_000_000, int(available), None if limit is None else int(limit)))
    assert told.state == state and "of 16.0 GB free" in told.found
    assert ("this container may use" in told.found) == (limit is not None)


@pytest.mark.parametrize(
    ("cores", "limit", "chosen", "state", "said"),
    [
        (8, None, {}, "good", "8 cores"),
        (8, None, {"OMP_NUM_THREADS": "1"}, "note", "OMP_NUM_THREADS=1"),
        (8, 3, {"OMP_NUM_THREADS": "3"}, "good", "8 cores"),
        (64, 3, {}, "note", "set OMP_NUM_THREADS=3"),
        (8, 3, {"MKL_NUM_THREADS": "2"}, "note", "unset MKL_NUM_THREADS"),
        (1, None, {"OMP_NUM_THREADS": "1"}, "good", "1 core"),
    ],
)
def test_threads(cores: int, limit: int | None, chosen: dict[str, str], state: State, said: str) -> None:
    told = only(system.thread_findings(cores, limit, chosen))
    assert told.state == state and said in f"{told.found}; {told.advice}"


def test_limits_of_a_container_and_of_those_around_it(tmp_path: Path) -> None:
    own, root = tmp_path / "own", tmp_path / "cgroup"
    own.write_text("0::/outer/inner\n", encoding="utf-8")
    (root / "outer" / "inner").mkdir(parents=True)
    assert system.container_limit("memory.max", root, own) is None
    (root / "outer" / "inner" / "memory.max").write_text("max\n", encoding="utf-8")
    (root / "outer" / "memory.max").write_text("3000000000\n", encoding="utf-8")
    (root / "outer" / "inner" / "cpu.max").write_text("250000 100000\n", encoding="utf-8")
    (root / "outer" / "cpu.max").write_text("max 100000\n", encoding="utf-8")
    assert system.container_limit("memory.max", root, own) == 3_000_000_000
    assert system.container_limit("cpu.max", root, own) == 2
    assert system.container_limit("cpu.max", root, tmp_path / "none") is None


@posix
def test_open_files(machine: Machine) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
        told = only(system.check_open_files(machine))
        assert told.state == "note" and "300" in told.found and "ulimit -n" in told.advice
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[1], 4096), before[1]))
        assert only(system.check_open_files(machine)).state == "good"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_clock_that_went_back(machine: Machine) -> None:
    assert only(system.check_clock(machine)).state == "good"
    machine.package = machine.folder / "installed.py"
    machine.package.write_text("", encoding="utf-8")
    os.utime(machine.package, (4_100_000_000, 4_100_000_000))
    told = only(system.check_clock(machine))
    assert told.state == "problem" and "2099" in told.found


def test_long_paths() -> None:
    short, long = Path("/x"), Path("/" + "y" * 200)
    assert only(system.long_path_findings(short, allowed=False)).state == "good"
    assert only(system.long_path_findings(long, allowed=True)).state == "good"
    told = only(system.long_path_findings(long, allowed=False))
    assert told.state == "problem" and "LongPathsEnabled" in told.advice


# -- folders


def test_room_and_permission(machine: Machine) -> None:
    found = {finding.name: finding for finding in places.check_room(machine)}
    assert list(found) == ["this folder", "cache", "own data", "temporary files"]
    assert str(machine.cache) in found["cache"].found and "free for encoded pictures" in found["cache"].found
    assert list(machine.cache.iterdir()) == []
    (machine.folder / "file").write_text("", encoding="utf-8")
    machine.cache = machine.folder / "file" / "cache"
    told = {finding.name: finding for finding in places.check_room(machine)}["cache"]
    assert told.state == "problem" and "file" in told.found


@posix
def test_a_folder_that_is_closed(machine: Machine) -> None:
    if os.geteuid() == 0:
        pytest.skip("no folder is closed to root")
    machine.cache.chmod(0o500)
    told = {finding.name: finding for finding in places.check_room(machine)}["cache"]
    machine.cache.chmod(0o700)
    assert told.state == "problem" and told.advice


def test_folders_that_a_program_synchronises(machine: Machine) -> None:
    assert places.synchroniser(Path("/home/a/OneDrive - Company/loras")) == "OneDrive"
    assert places.synchroniser(Path("/home/a/Dropbox (Personal)/x")) == "Dropbox"
    assert places.synchroniser(Path("/Users/a/Library/Mobile Documents/x")) == "iCloud Drive"
    assert places.synchroniser(Path("/home/a/dropboxes/onedrive-tools")) == ""
    assert not list(places.check_far_folders(machine))
    machine.folder = machine.folder / "Nextcloud"
    told = only(places.check_far_folders(machine))
    assert told.state == "note" and "kept in Nextcloud" in told.found


@posix
def test_folders_on_a_network_disk(tmp_path: Path) -> None:
    near = SimpleNamespace(mountpoint="/", fstype="ext4")
    far = SimpleNamespace(mountpoint=str(tmp_path.resolve()), fstype="nfs4")
    local = SimpleNamespace(mountpoint=str(tmp_path.resolve() / "local"), fstype="ext4")
    assert places.network_kind(tmp_path / "x", [near, far, local]) == "a network disk"
    assert places.network_kind(tmp_path / "local" / "x", [far, local, near]) == ""
    assert places.network_kind(tmp_path / "x", []) == ""


# -- packages


def install(folder: Path, name: str, number: str, *requirements: str) -> None:
    """A package as pip leaves it: what it is called, its version and what it asks for."""
    info = folder / f"{name}-{number}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {number}"]
    lines += [f"Requires-Dist: {line}" for line in requirements]
    (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which alone installed packages are looked for."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


def test_optional_packages(machine: Machine, site: Path) -> None:
    install(site, "ray", "2.51.0")
    found = {finding.name: finding for finding in packages.check_optional(machine)}
    assert found["ray"].state == "good" and "2.51.0" in found["ray"].found
    assert found["bitsandbytes"].state == "note"
    assert 'pip install "loraloom[optimizers-8bit]"' in found["bitsandbytes"].advice
    assert len(found) == 5


def test_versions_that_do_not_fit(machine: Machine, site: Path) -> None:
    asked = ["torch<2.14,>=2.9", 'bitsandbytes>=0.45; extra == "optimizers-8bit"', 'diffusers<0.43; extra == "test"']
    install(site, "loraloom", "0.1", *asked, 'pytest>=8; extra == "test"')
    install(site, "torch", "2.13.0+cpu", "setuptools; python_version < '3'")
    install(site, "bitsandbytes", "0.45.1", "torch<3,>=2.4")
    assert only(packages.check_versions(machine)).state == "good"
    install(site, "torchvision", "0.19.0", "torch==2.4.0")
    told = only(packages.check_versions(machine))
    assert told.state == "note" and "torchvision asks for torch==2.4.0, and 2.13.0+cpu is installed" in told.found
    install(site, "diffusers", "0.50.0")
    (site / "bitsandbytes-0.45.1.dist-info" / "METADATA").unlink()
    (site / "bitsandbytes-0.45.1.dist-info").rmdir()
    install(site, "bitsandbytes", "0.41.0")
    found = list(packages.check_versions(machine))
    assert [finding.state for finding in found] == ["problem", "note", "note"]
    assert found[0].advice == '`pip install "bitsandbytes>=0.45"`'
    assert "diffusers 0.50.0 (tried: <0.43)" in found[2].found


def test_the_8bit_optimizer(machine: Machine) -> None:
    machine.torch = SimpleNamespace(facts=lambda: TorchFacts("2.13.0"))  # type: ignore[assignment]
    assert list(packages.check_8bit(machine)) == []
    broken = TorchFacts("2.13.0", optimizer_8bit="libbitsandbytes_cuda130.so not found")
    machine.torch = SimpleNamespace(facts=lambda: broken)  # type: ignore[assignment]
    told = only(packages.check_8bit(machine))
    assert told.state == "problem" and "libbitsandbytes_cuda130.so" in told.found


# -- work


def run(folder: Path, *events: Event) -> Path:
    """A run folder with these events in its log."""
    folder.mkdir(parents=True)
    (folder / "settings.toml").write_text("", encoding="utf-8")
    with EventLog(folder) as log:
        for event in events:
            log(event)
    return folder


def test_runs_that_were_interrupted(machine: Machine) -> None:
    assert only(work.check_runs(machine)).found == "none here"
    started = RunStarted("x", 20, 5, 4, 4, 100)
    steps = [StepFinished(number, 1, 0.4, 0.4, {"unet": 1e-4}, 2.0) for number in (1, 2, 3)]
    runs = machine.folder / "runs"
    run(runs / "done", started, *steps, RunFinished(3, stopped=True, seconds=6.0, average_loss=0.4))
    assert only(work.check_runs(machine)).found == "1 here, none interrupted"
    cut = run(runs / "cut", started, *steps)
    told = only(work.check_runs(machine))
    assert told.state == "note" and told.found == "cut was interrupted after step 3 of 20"
    assert worded(told.advice) == f"it had kept no state, and would begin anew: loraloom train --resume {cut}"
    (cut / "state").mkdir()
    (cut / "state" / "step-2.safetensors").write_bytes(b"")
    told = only(work.check_runs(machine))
    assert told.advice.startswith("it goes on from its last state")
    assert [each.action for each in told.advice.actions] == [Action.TRAIN_ON]  # type: ignore[attr-defined]
    for number in range(6):
        run(runs / f"more-{number}", started, *steps[:1])
    found = list(work.check_runs(machine))
    assert len(found) == 6 and found[-1].found == "2 more were interrupted"


def test_files_of_killed_commands(machine: Machine) -> None:
    weights = run(machine.folder / "runs" / "a") / "weights"
    weights.mkdir()
    left = {}
    for number, folder in enumerate((machine.folder, weights, machine.cache), 1):
        with unfinished_file(folder) as path:
            assert only(work.check_leftovers(machine)).state == ("good" if number == 1 else "note")
        path.write_bytes(bytes(1000 * number))
        left[path] = 1000 * number
        os.utime(path, (10**9, 10**9))  # Windows goes by the time
    told = only(work.check_leftovers(machine))
    assert told.state == "note" and "3 files or folders of killed commands, 6.0 kB" in told.found
    assert worded(told.advice).startswith(f"`loraloom doctor --tidy {machine.folder}` frees the room now")
    assert all(path.exists() for path in left)
    with unfinished_file(weights) as alive:
        assert work.tidy(machine) == 6000
        assert alive.exists()
    assert not any(path.exists() for path in left)
    assert only(work.check_leftovers(machine)).state == "good"


def test_an_index_that_is_stale_or_damaged(machine: Machine) -> None:
    assert only(work.check_library(machine)).found == "no index yet"
    models = machine.folder / "models"
    models.mkdir()
    for name in ("a", "b", "c"):
        write_tensors(models / f"{name}.safetensors", random_lora("sd1", 1).file_tensors())
    (models / "a.json").write_text("{}", encoding="utf-8")
    library.scan([models], index=machine.index)
    told = only(work.check_library(machine))
    assert told.state == "good" and told.found.startswith("3 files")
    os.utime(models / "a.safetensors", (10**9, 10**9))
    assert only(work.check_library(machine)).found.startswith("1 of 3")
    (models / "b.safetensors").unlink()
    (models / "c.json").write_text("{}", encoding="utf-8")
    told = only(work.check_library(machine))
    assert told.state == "note" and told.found.startswith("3 of 3")
    assert worded(told.advice) == "bring it up to date: loraloom library scan FOLDER"
    library.scan([models], index=machine.index)
    assert only(work.check_library(machine)).state == "good"
    machine.index.write_bytes(b"no index, but long enough to look like something" * 99)
    told = only(work.check_library(machine))
    assert told.state == "problem" and "library.sqlite" in told.found and "can be deleted" in told.advice


def test_a_database_that_is_damaged(machine: Machine) -> None:
    assert list(work.check_database(machine)) == []
    Home.open(machine.folder).close()
    assert only(work.check_database(machine)).state == "good"
    for name in ("studio.db-wal", "studio.db-shm"):
        (machine.folder / name).unlink(missing_ok=True)
    (machine.folder / "studio.db").write_bytes(b"no database, but long enough to look like something" * 99)
    told = only(work.check_database(machine))
    assert told.state == "problem" and "studio.db is damaged" in told.found
    assert (machine.folder / "studio.db").exists()
