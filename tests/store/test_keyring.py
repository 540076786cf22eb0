"""The keyring: a file that is made once, read by many and changed without losing a key; a mounted folder."""

import base64
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from cryptography.hazmat.primitives import serialization

from caplai.store import keyfolder
from caplai.store.keyfolder import KeyFolder
from caplai.store.keyring import KINDS, Agreed, KeyringError, KeyringFile, Token, token


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "keyring.json"
    assert KeyringFile(path).create()
    return path


def of(keys, kind, key_id):
    """The token of that key."""
    return token(kind, key_id, keys.read()[kind][key_id])


def test_it_is_made_once_for_its_owner_alone(path):
    before = path.read_bytes()
    assert not KeyringFile(path).create()
    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o600
    for kind in KINDS:
        ring = KeyringFile(path).ring(kind)
        assert list(ring.keys) == [ring.active]
        assert len(ring.get(ring.active)) == 32


def test_a_key_that_signs_comes_when_it_is_asked_for_and_is_an_rsa_key(path):
    keys = KeyringFile(path)
    with pytest.raises(KeyringError, match="caplai keys rotate oidc"):
        keys.ring("oidc")
    first = keys.add("oidc")
    private = serialization.load_der_private_key(keys.ring("oidc").keys[first], None)
    assert (private.key_size, keys.ring("oidc").active) == (2048, first)
    keys.obey(Agreed({}, frozenset()))  # where others live it signs nothing before all have it
    with pytest.raises(KeyringError, match="active yet"):
        keys.ring("oidc")
    second = keys.add("oidc")
    keys.note({"oidc": second})
    assert KeyringFile(path).ring("oidc").active == second
    keys.remove([of(keys, "oidc", first)])
    assert list(keys.read()["oidc"]) == [second]


def test_what_signs_must_be_a_key_of_its_kind(path):
    content = json.loads(path.read_text())
    content["oidc"] = {"active": "a", "keys": {"a": base64.b64encode(secrets.token_bytes(1218)).decode()}}
    path.write_text(json.dumps(content))
    with pytest.raises(KeyringError, match="no RSA key"):
        KeyringFile(path).readable()


def test_two_hosts_never_make_the_same_id(tmp_path):
    ids = set()
    for n in range(20):
        keys = KeyringFile(tmp_path / f"{n}.json")
        keys.create()
        ids.add(keys.first("issuing"))
    assert len(ids) == 20


def test_a_running_process_reads_a_new_key_and_uses_it_only_when_told(path):
    running = KeyringFile(path)
    before = running.ring("issuing")
    new = KeyringFile(path).add("issuing")
    after = running.ring("issuing")
    assert after.active == before.active
    assert after.get(before.active) == before.get(before.active)
    assert after.get(new) is not None
    running.obey(Agreed({"issuing": new}, frozenset()))
    assert running.ring("issuing").active == new
    assert running.ring("pepper").active == KeyringFile(path).ring("pepper").active


def test_it_says_which_keys_in_use_it_lacks(path, tmp_path):
    here = KeyringFile(path)
    assert here.missing() == set()
    other = Token("issuing", "elsewhere", "0123456789ab")
    here.obey(Agreed({"issuing": "elsewhere"}, here.readable() | {other}))
    assert here.missing() == {other}
    assert here.ring("issuing").get("elsewhere") is None
    clients_alone = Token("oidc", "elsewhere", "0123456789ab")
    here.obey(Agreed({"oidc": "elsewhere"}, here.readable() | {clients_alone}))
    assert here.missing() == set(), "texts and passwords need no key of the clients'"
    with pytest.raises(KeyringError):
        here.ring("oidc")


def test_a_key_that_only_bears_the_id_of_one_in_use_is_not_used(path):
    here = KeyringFile(path)
    new = here.add("issuing")
    here.obey(Agreed({"issuing": new}, frozenset({Token("issuing", new, "0123456789ab")})))
    assert here.missing() == {Token("issuing", new, "0123456789ab")}
    assert here.ring("issuing").get(new) is None


def test_changes_at_once_lose_no_key(path):
    made = []
    threads = [
        threading.Thread(target=lambda: made.append(KeyringFile(path).add("issuing"))) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 16
    assert set(made) < set(KeyringFile(path).ring("issuing").keys)


def test_a_removed_key_is_in_the_file_no_more(path):
    keys = KeyringFile(path)
    old, text = keys.first("issuing"), json.loads(path.read_text())["issuing"]["keys"]
    new = keys.add("issuing")
    keys.obey(Agreed({"issuing": new}, frozenset()))
    keys.remove({of(keys, "issuing", old)})
    assert text[old] not in path.read_text()
    assert list(keys.ring("issuing").keys) == [new]
    assert KeyringFile(path).first("issuing") == new
    assert path.stat().st_mode & 0o777 == 0o600


def test_another_key_with_the_id_of_a_destroyed_one_stays(path):
    keys = KeyringFile(path)
    new = keys.add("issuing")
    before = path.read_bytes()
    keys.remove({Token("issuing", new, "0123456789ab")})
    assert path.read_bytes() == before


def test_the_last_key_of_a_kind_stays(path):
    keys = KeyringFile(path)
    keys.remove({of(keys, "web", keys.first("web"))})
    assert KeyringFile(path).ring("web").active == keys.first("web")


CRASH = """
import os, signal, sys
from pathlib import Path
from caplai.store import keyring
at, path = sys.argv[1], Path(sys.argv[2])
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
if at == "writing":
    class Torn:
        def dump(self, content, file, **_):
            file.write(json.dumps(content)[:100]); file.flush(); die()
        def __getattr__(self, name): return getattr(json, name)
    import json
    keyring.json = Torn()
elif at == "written":
    Path.replace = die
else:
    replace = Path.replace
    Path.replace = lambda *words: (replace(*words), die())
keyring.KeyringFile(path).add("issuing")
"""


@pytest.mark.parametrize("at", ["writing", "written", "renamed"])
def test_a_crash_in_the_middle_of_a_change_loses_nothing(path, at):
    """And what it leaves, which holds keys, is gone at the next start."""
    before = KeyringFile(path).readable()
    done = subprocess.run([sys.executable, "-c", CRASH, at, path])
    assert done.returncode == -signal.SIGKILL
    after = KeyringFile(path).readable()
    assert after >= before
    assert len(after - before) == (1 if at == "renamed" else 0)
    left = [name for name in os.listdir(path.parent) if name.startswith(".keyring.json")]
    assert bool(left) == (at != "renamed")
    KeyringFile(path).create()
    assert os.listdir(path.parent) == ["keyring.json"]
    assert KeyringFile(path).readable() == after


def test_what_is_wrong_is_said_with_how_to_mend_it_and_without_a_key(path):
    keys = json.loads(path.read_text())["issuing"]["keys"].values()
    path.chmod(0o640)
    with pytest.raises(KeyringError, match="chmod 600"):
        KeyringFile(path).ring("issuing")
    path.chmod(0o600)
    for content in ("", "{}", "[]", path.read_text()[:-9], path.read_text().replace("=", "")):
        path.write_text(content)
        with pytest.raises(KeyringError) as error:
            KeyringFile(path).ring("issuing")
        assert not any(key in str(error.value) for key in keys)
    path.unlink()
    with pytest.raises(KeyringError, match="No such file"):
        KeyringFile(path).ring("issuing")


# --- a mounted folder ------------------------------------------------------------------------------


class Mount:
    """A folder as Kubernetes mounts a secret: `..data` links to a hidden folder, each key through it."""

    def __init__(self, folder):
        self.folder = folder
        self.files = {f"{kind}.a": base64.b64encode(secrets.token_bytes(32)) + b"\n" for kind in KINDS}
        self.mode = 0o440
        self.swap()

    def swap(self):
        new = self.folder / f"..{secrets.token_hex(4)}"
        new.mkdir()
        for name, text in self.files.items():
            (new / name).write_bytes(text)
            (new / name).chmod(self.mode)
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        data = self.folder / "..data"
        old = data.resolve() if data.exists() else None
        (self.folder / "..data_tmp").symlink_to(new.name)
        (self.folder / "..data_tmp").replace(data)
        if old is not None:
            shutil.rmtree(old)


@pytest.fixture
def mount(tmp_path, monkeypatch):
    monkeypatch.setattr(keyfolder, "_EVERY", 0.0)
    return Mount(tmp_path)


def test_a_mounted_folder_is_read_and_seen_to_change(mount):
    keys = KeyFolder(mount.folder)
    assert keys.ring("issuing").active == "a"
    assert keys.ring("issuing").get("a") == base64.b64decode(mount.files["issuing.a"])
    same = keys.read()
    assert keys.read() is same
    mount.files["issuing.b"] = base64.b64encode(bytes(range(32)))
    mount.swap()
    keys.obey(Agreed({"issuing": "a"}, frozenset()))
    assert keys.ring("issuing").active == "a"
    assert keys.ring("issuing").get("b") == bytes(range(32))
    del mount.files["issuing.a"]
    mount.swap()
    assert list(keys.ring("issuing").keys) == ["b"]


def test_a_plain_folder_will_do_and_other_files_are_left_alone(mount, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    for name, text in {**mount.files, "README": b"?", ".issuing.b": b"?"}.items():
        (plain / name).write_bytes(text)
        (plain / name).chmod(0o400)
    keys = KeyFolder(plain)
    assert {str(one).rpartition("/")[0] for one in keys.readable()} == {"issuing/a", "pepper/a", "web/a"}


def test_a_folder_is_written_by_others_only(mount):
    keys = KeyFolder(mount.folder)
    assert not keys.create()
    assert not keys.writable
    with pytest.raises(KeyringError, match=r"docs/keys\.md"):
        keys.add("issuing")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda mount: setattr(mount, "mode", 0o444), "defaultMode: 0440"),
        (lambda mount: setattr(mount, "mode", 0o460), "defaultMode: 0440"),
        (lambda mount: mount.files.update({"issuing.b": b"n0 base64!"}), "issuing.b is no key"),
        (lambda mount: mount.files.update({"issuing.b": b"c2hvcnQ="}), "b is shorter than 32"),
        (lambda mount: mount.files.update({"issuing.it is a long id": mount.files["web.a"]}), "1 to 15"),
        (lambda mount: mount.files.pop("pepper.a"), "has no pepper key"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(mount, spoil, says):
    spoil(mount)
    mount.swap()
    with pytest.raises(KeyringError) as error:
        KeyFolder(mount.folder).ring("issuing")
    assert says in str(error.value)
    assert not any(text.decode().strip() in str(error.value) for text in mount.files.values())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_strangers_file_is_no_key(mount):
    os.chown((mount.folder / "issuing.a").resolve(), 12345, -1)
    with pytest.raises(KeyringError, match="must belong to root"):
        KeyFolder(mount.folder).ring("issuing")


def test_a_folder_that_swaps_all_the_time_is_read_whole(mount):
    """Each key of one state has the same bytes: a mixture would show."""
    stop = threading.Event()

    def go_on():
        while not stop.is_set():
            text = base64.b64encode(secrets.token_bytes(32))
            mount.files = dict.fromkeys(mount.files, text)
            mount.swap()
            time.sleep(0.001)

    mount.files = dict.fromkeys(mount.files, mount.files["web.a"])
    mount.swap()
    swapping = threading.Thread(target=go_on)
    swapping.start()
    try:
        keys = KeyFolder(mount.folder)
        for _ in range(300):
            assert len({key for ring in keys.read().values() for key in ring.values()}) == 1
    finally:
        stop.set()
        swapping.join()
