"""kill -9 before every single change of the file system: what is left is whole, or none.

A process forks once for each point: the child ends itself by SIGKILL before its n-th change below
the store, as Python's audit hooks tell. The last child comes to its end.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.hub_server import COMMIT, REPO, FakeHub
from tests.unit.hub.hubs import NEEDED, contents, do_pull, hugging, model_files

from hearth.core.errors import ModelNotFoundError
from hearth.hub.names import parse_name
from hearth.hub.observer import Silent
from hearth.hub.pull import offline
from hearth.hub.stage import stage
from hearth.hub.store import Store

MOST = 200
KILLER = """
import os, shutil, signal, sys
from pathlib import Path
from hearth.hub.huggingface import HuggingFaceSource
from hearth.hub.names import parse_name
from hearth.hub.observer import Silent
from hearth.hub.pull import Order, pull
from hearth.hub.stage import stage
from hearth.hub.store import Store

action, name, url, base, roots, most = sys.argv[1:]
CHANGES = {"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "open"}


def act(root):
    store = Store(root / "store")
    if action == "pull":
        source = HuggingFaceSource(url, lambda: None)
        pull(store, Order(parse_name(name), num_workers=1), (source,), Silent())
    elif action == "remove":
        with store.locked(parse_name(name), None):
            store.remove(parse_name(name), store.revisions(parse_name(name)))
    else:
        stage(store.find(parse_name(name)).path, root / "fast", None, Silent()).release()


def is_change(event, arguments, root):
    if event not in CHANGES:
        return False
    if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
        return False
    named = arguments[1] if event in ("os.rename", "os.link") else arguments[0]
    # rmtree names files within a directory that it holds open.
    return isinstance(named, (str, bytes)) and (
        os.fsdecode(named).startswith(str(root)) or not os.path.isabs(named)
    )


for number in range(1, int(most)):
    root = Path(roots) / str(number)
    shutil.copytree(base, root, copy_function=os.link)
    child = os.fork()
    if child == 0:
        left = number

        def hook(event, arguments):
            global left
            if is_change(event, arguments, root):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        act(root)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == 0:
        print(number - 1)
        break
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, status
"""


def kill_everywhere(action: str, hub: FakeHub, base: Path, roots: Path) -> list[Path]:
    """One directory for each point at which the action was killed, begun from a copy of `base`."""
    (base / "store").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", KILLER, action, REPO, hub.url, str(base), str(roots)]
    done = subprocess.run([*command, str(MOST)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    num_points = int(done.stdout)
    assert 10 < num_points < MOST
    return [roots / str(number) for number in range(1, num_points + 1)]


def wanted(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: data for path, data in files.items() if path in NEEDED}


@pytest.mark.parametrize("has_other_commit", [False, True])
def test_a_pull_that_is_killed_anywhere(tmp_path: Path, has_other_commit: bool) -> None:
    old = model_files()
    with FakeHub(old) as hub:
        if has_other_commit:
            do_pull(tmp_path / "base" / "store", hugging(hub))
            hub.commit = "f" * 40
            hub.files["config.json"] = b'{"new": 1}'
        for root in kill_everywhere("pull", hub, tmp_path / "base", tmp_path / "roots"):
            store = Store(root / "store")
            for model in store.models():
                if model.manifest is not None:
                    store.verify(model, lambda _: None)
            pulled = do_pull(store.root, hugging(hub))
            assert contents(pulled.path) == wanted(hub.files), root
            assert offline(store, parse_name(REPO)).path == pulled.path
            assert not list(store.root.rglob("*.part")), root
            if has_other_commit:
                assert contents(store.root / "test-org--toy-model" / COMMIT) == wanted(old), root
            shutil.rmtree(root)


def test_a_removal_that_is_killed_anywhere(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        do_pull(tmp_path / "base" / "store", hugging(hub))
        for root in kill_everywhere("remove", hub, tmp_path / "base", tmp_path / "roots"):
            store, name = Store(root / "store"), parse_name(REPO)
            try:
                left = offline(store, name)
            except ModelNotFoundError:
                pass
            else:
                assert contents(left.path) == wanted(hub.files), root
            with store.locked(name, None):
                store.remove(name, store.revisions(name))
            assert store.models() == []


def test_a_copy_that_is_killed_anywhere(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        pulled = do_pull(tmp_path / "base" / "store", hugging(hub))
        for root in kill_everywhere("stage", hub, tmp_path / "base", tmp_path / "roots"):
            source = root / pulled.path.relative_to(tmp_path / "base")
            for copy in (root / "fast").glob("test-org*"):
                if not copy.name.endswith(".copying"):
                    assert contents(copy) == wanted(hub.files), root
            staged = stage(source, root / "fast", None, Silent())
            staged.release()
            assert contents(staged.path) == wanted(hub.files), root
            assert len([p for p in (root / "fast").iterdir() if p.name != ".locks"]) == 1
