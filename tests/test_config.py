"""One configuration: environment over file over defaults, and clear words for what is wrong."""

import base64
import json
import re
from pathlib import Path

import pytest

from caplai.config import ConfigError, load
from caplai.store.keyfolder import KeyFolder
from caplai.store.keyring import KeyringError, KeyringFile


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "caplai.toml"
    monkeypatch.setenv("CAPLAI_CONFIG", str(path))

    def write(text):
        path.write_text(text, "utf-8")

    write("")
    return write


LINK = """
[[links]]
name = "viettel"
host = "127.0.0.1"
port = 2775
system_id = "caplai"
password = "secret"
short_codes = ["8079"]
"""


AGGREGATOR = """
[[aggregators]]
name = "vnpt"
format = "kannel"
secrets = ["aaaaaaaaaaaaaaaa"]
"""
SEND = """
[aggregators.send]
url = "http://127.0.0.1:13013/cgi-bin/sendsms"
username = "caplai"
secret = "hush"
"""


def test_the_documented_example_is_understood(file):
    file('[service]\nkeyword = "BH"\nshort_codes = ["8079"]\n' + LINK)
    config = load()
    [link] = config.links
    assert (link.name, link.host, link.port, link.system_id) == ("viettel", "127.0.0.1", 2775, "caplai")
    assert (link.bind, link.use, link.phone_ton, link.phone_npi) == ("transceiver", ["mo", "mt"], 1, 1)
    assert link.password.get_secret_value() == "secret"


def test_the_environment_goes_over_the_file(file, monkeypatch):
    file('port = 8010\n[service]\nkeyword = "AA"\ncommand = "MK"\n')
    monkeypatch.setenv("CAPLAI_SERVICE__KEYWORD", "BH")
    monkeypatch.setenv("CAPLAI_PORT", "8020")
    monkeypatch.setenv("CAPLAI_LINKS", '[{"name": "a", "host": "localhost"}]')
    config = load()
    assert (config.port, config.service.keyword, config.service.command) == (8020, "BH", "MK")
    assert config.links[0].name == "a"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("colour = 'red'", "colour: there is no such setting"),
        ("[service]\nkeywrd = 'BH'", "service.keywrd: there is no such setting"),
        ("[[links]]\nname = 'a'\nhost = 'b'\nwindwo = 3", "links.0.windwo: there is no such setting"),
        ("port = 'eight'", "port: Input should be a valid integer"),
        ("[password]\nlifetime = 60", "password.lifetime: must be between ten minutes and 72 hours"),
        ("public_url = 'example.vn'", "public_url: must start with http:// or https://"),
        ("[service]\nmt_link = 'b'" + LINK, "service.mt_link names no link: b"),
        ("engines = 2\nwatch.web_port = 8012\n" + LINK, "watch.engine_port: choose another"),
        (LINK + LINK, "two of them (or of the aggregators) have the same name"),
        (LINK + AGGREGATOR.replace("vnpt", "viettel"), "two of them (or of the aggregators)"),
        (AGGREGATOR.replace('["aaaaaaaaaaaaaaaa"]', "[]"), "aggregators.0.secrets"),
        (AGGREGATOR.replace("secrets", "networks"), "aggregators.0.secrets: Field required"),
        (AGGREGATOR.replace("aaaaaaaaaaaaaaaa", "short"), "has fewer than 16 characters"),
        (AGGREGATOR.replace("aaaaaaaaaaaaaaaa", "a&b=c d?aaaaaaaaa"), "would need encoding in a URL"),
        (AGGREGATOR.replace("kannel", "json"), "has fewer than 32 characters"),
        (AGGREGATOR + 'reply = "send"', "no send URL"),
        (AGGREGATOR + 'networks = ["10.0.0.0/99"]', "aggregators.0.networks"),
        (AGGREGATOR + 'charset = "rot13"', "aggregators.0.charset: is not known"),
        (AGGREGATOR + SEND.replace('"caplai"', '""'), "send.username of vnpt is empty"),
        (AGGREGATOR + SEND.replace("http://", "http://caplai:hush@"), "must have no user, password"),
        (AGGREGATOR + SEND.replace("http://", "ftp://"), "must be a URL such as"),
        ("[texts]\nissued = 'Mật khẩu {password} {code}'", "issued"),
        ("[texts]\nissued = 'mat khau'", "issued"),
        ("trusted_proxies = ['10.0.0.0/99']", "trusted_proxies"),
        ("port = ", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named(file, text, says):
    file(text)
    with pytest.raises(ConfigError) as error:
        load()
    assert says in str(error.value)


@pytest.mark.parametrize("name", ["CAPLAI_COLOUR", "CAPLAI_SERVICE__KEYWRD", "CAPLAI_COLOUR__RED"])
def test_an_unknown_variable_is_refused_by_its_name(file, monkeypatch, name):
    monkeypatch.setenv(name, "x")
    with pytest.raises(ConfigError) as error:
        load()
    assert name.lower().removeprefix("caplai_").replace("__", ".") in str(error.value).lower().replace(
        "__", "."
    )


def test_a_list_in_the_environment_that_is_no_json(file, monkeypatch):
    monkeypatch.setenv("CAPLAI_LINKS", "viettel")
    with pytest.raises(ConfigError) as error:
        load()
    assert "links" in str(error.value)


def test_a_missing_file_is_an_error_only_when_it_was_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CAPLAI_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError) as error:
        load()
    assert "cannot read" in str(error.value)
    monkeypatch.delenv("CAPLAI_CONFIG")
    monkeypatch.chdir(tmp_path)
    assert load().port == 8000


KMS = "import base64\nclass Error(Exception): ...\ndef decrypt(master, wrapped): return wrapped[::-1]\n"


def test_a_source_of_keys_of_ones_own_as_the_documents_show_it(file, tmp_path, monkeypatch):
    shown = (Path(__file__).parent.parent / "docs" / "keys.md").read_text("utf-8")
    [example] = re.findall(r"```python\n(.*?)```", shown, re.DOTALL)
    (tmp_path / "agency_kms.py").write_text(KMS)
    (tmp_path / "agency_keys.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    wrapped = tmp_path / "wrapped.json"
    key = bytes(range(32))
    text = base64.b64encode(key[::-1]).decode()
    wrapped.write_text(json.dumps({kind: {"a": text} for kind in ("issuing", "pepper", "web")}))
    file(f'[keys]\nsource = "agency_keys:WrappedKeys"\noptions = {{wrapped = "{wrapped}", master = "m"}}')
    keys = load().open_keyring()
    assert keys.ring("issuing").get("a") == key
    assert keys.read() is keys.read()
    assert not keys.writable
    wrapped.unlink()
    broken = load().open_keyring()
    with pytest.raises(KeyringError, match="FileNotFoundError"):
        broken.ring("web")


@pytest.mark.parametrize("source", ["no.such:Class", "json:JSONDecoder", "caplai.store.keyring:KeyringFile"])
def test_a_source_that_is_none_is_named_and_nothing_of_its_options(file, source):
    file(f'[keys]\nsource = "{source}"\noptions = {{secret = "hush"}}')
    with pytest.raises(ConfigError) as error:
        load().open_keyring()
    assert source in str(error.value)
    assert "hush" not in str(error.value)


def test_a_keyring_is_a_file_or_a_folder(file, tmp_path):
    (tmp_path / "folder").mkdir()
    file(f'keyring = "{tmp_path}/folder"')
    assert isinstance(load().open_keyring(), KeyFolder)
    file(f'keyring = "{tmp_path}/file"')
    assert isinstance(load().open_keyring(), KeyringFile)


def test_secrets_do_not_show(file):
    file("database_url = 'postgresql://u:hush@h/d'" + LINK + AGGREGATOR + SEND)
    assert "hush" not in repr(load())
    assert "'secret'" not in repr(load())
    assert "aaaa" not in repr(load())


def test_an_aggregator_with_a_send_url_is_a_way_to_phones(file):
    file(AGGREGATOR + SEND + AGGREGATOR.replace("vnpt", "other"))
    assert load().senders == ["vnpt"]
    file(AGGREGATOR + SEND + LINK + '[service]\nmt_link = "vnpt"')
    assert (load().senders, load().service.mt_link) == (["viettel", "vnpt"], "vnpt")


def test_a_wrong_secret_is_not_repeated(file):
    file(LINK.replace('"secret"', "12345678"))
    with pytest.raises(ConfigError) as error:
        load()
    assert "12345678" not in str(error.value)
    file(AGGREGATOR.replace("aaaaaaaaaaaaaaaa", "12345678"))
    with pytest.raises(ConfigError) as error:
        load()
    assert "12345678" not in str(error.value)
