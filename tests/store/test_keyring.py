"""The keyring file: made once, read by many, changed by rotation without losing a key."""

import json
import threading

import pytest

from caplai.store.keyring import KINDS, KeyringError, KeyringFile


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "keyring.json"
    assert KeyringFile(path).create()
    return path


def test_it_is_made_once_for_its_owner_alone(path):
    before = path.read_bytes()
    assert not KeyringFile(path).create()
    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o600
    for kind in KINDS:
        ring = KeyringFile(path).ring(kind)
        assert list(ring.keys) == [ring.active]
        assert len(ring.get(ring.active)) == 32


def test_a_running_process_sees_a_rotation_and_keeps_the_old_key(path):
    running = KeyringFile(path)
    before = running.ring("issuing")
    new = KeyringFile(path).rotate("issuing")
    after = running.ring("issuing")
    assert after.active == new != before.active
    assert after.get(before.active) == before.get(before.active)
    assert running.ring("pepper").active == KeyringFile(path).ring("pepper").active


def test_rotations_at_once_lose_no_key(path):
    made = []
    threads = [
        threading.Thread(target=lambda: made.append(KeyringFile(path).rotate("issuing"))) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 16
    assert set(made) < set(KeyringFile(path).ring("issuing").keys)


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
