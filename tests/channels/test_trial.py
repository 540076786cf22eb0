"""`caplai doctor --link`: a link tried out against SMSCs of several sorts."""

import asyncio
import json
import os
import re
import sys
from contextlib import asynccontextmanager

import pytest
from click.testing import CliRunner
from django.conf import settings

from caplai.channels import esme
from caplai.channels.links import Link
from caplai.channels.trial import id_form
from caplai.cli import main
from caplai.doctor import try_link
from caplai.simulator import Simulator, SimulatorConfig
from caplai.simulator.phones import State
from caplai.simulator.smsc import Rules
from caplai.smpp.pdu import BindResp, Command, Simple, Status, encode
from caplai.store.db import conninfo
from tests.channels.carrier import Carrier
from tests.channels.test_esme import engine
from tests.channels.test_tls import certificate  # noqa: F401 - a fixture
from tests.channels.test_trouble import until

OTHER = "BH MK 0123456789"


def link_to(carrier, **options):
    return Link(name="viettel", host="127.0.0.1", port=carrier.port, password="secret", **options)


class Report:
    """What the trial says, and a hook for each sentence."""

    def __init__(self):
        self.findings = []
        self.hooks = []

    def __call__(self, finding):
        self.findings.append(finding)
        for hook in self.hooks:
            hook(finding.says)

    def of(self, what):
        """The last judgement on this."""
        return [f for f in self.findings if f.what == f"link viettel: {what}" and f.well is not None][-1]


async def trial(link, report, **options):
    values = {"timeout": 0.5, "word": None, "statuses": (), "send_to": None, "deliveries": True} | options
    await try_link(link, "BH", report, **values)


def phone(carrier, again):
    """Texts what is asked for. The SMSC delivers it again after a status in `again`: so many seconds later, or when
    what is there has happened.
    """
    tasks = set()
    answers = []

    def asked(says):
        if found := re.search(r'text "(.+)" from', says):
            task = asyncio.create_task(send(found[1]))
            tasks.add(task)

    async def send(words):
        status = None
        while status != Status.ESME_ROK:
            pause = 0.01 if status is None else again[status]
            await (asyncio.sleep(pause) if isinstance(pause, float) else pause())
            status = await carrier.deliver(words.lower())
            answers.append(status)
            if status and status not in again:
                return

    return asked, answers


async def answered(carrier, status):
    """Wait until some delivery was answered so."""
    await carrier.until(lambda: status in carrier.statuses_heard(Command.DELIVER_SM_RESP))


def test_the_first_status_that_makes_it_deliver_again_is_proposed(conn):
    async def play():
        async with Carrier() as carrier:
            report = Report()
            asked, answers = phone(carrier, {Status.ESME_RX_T_APPN: 0.2, Status.ESME_RTHROTTLED: 0.1})
            report.hooks.append(asked)
            await trial(link_to(carrier), report, timeout=1.0)
            await asyncio.sleep(0.1)
            assert answers == [
                Status.ESME_RSYSERR,  # gives up: texted once more
                Status.ESME_RX_T_APPN,
                Status.ESME_RMSGQFUL,  # gives up, on the delivery that came again
                Status.ESME_RTHROTTLED,
                Status.ESME_ROK,
            ]
            assert carrier.statuses_heard(Command.UNBIND) == [Status.ESME_ROK]
            return report

    report = asyncio.run(play())
    found = report.of("try_again_status")
    assert found.well is False
    assert "it delivers again after: ESME_RX_T_APPN, ESME_RTHROTTLED;" in found.says
    assert "it gives up after: ESME_RSYSERR, ESME_RMSGQFUL" in found.says
    assert 'try_again_status = "ESME_RX_T_APPN"' in found.mend
    assert re.search(
        r"ESME_RX_T_APPN: it came again after 0\.[2-9]", "\n".join(f.says for f in report.findings)
    )
    assert report.of("enquire_link").well
    assert "calls itself 'smsc' and speaks SMPP 3.4" in report.of("bind as transceiver").says
    assert conn.execute("select count(*) from inbox").fetchone() == (0,)
    assert conn.execute("select count(*) from link_session").fetchone() == (0,)


def test_messages_of_others_stay_with_the_smsc(conn):
    """They get the link's own status, whatever is being tried, and so do receipts."""

    async def play():
        async with Carrier() as carrier:
            report = Report()
            asked, _ = phone(carrier, {0x444: 0.3})
            report.hooks.append(asked)
            others = []

            async def people():
                await carrier.bound()
                others.append(await carrier.deliver(OTHER))
                others.append(await carrier.deliver("id:77 stat:DELIVRD", esm_class=4))
                await asyncio.sleep(0.2)
                others.append(await carrier.deliver(OTHER))

            both = asyncio.create_task(people())
            await trial(link_to(carrier, try_again_status=0x444), report, statuses=[0x444], timeout=1)
            await both
            assert others == [0x444] * 3
            return report

    report = asyncio.run(play())
    found = report.of("try_again_status")
    assert found.well
    assert 'try_again_status = "0x00000444"' in found.says
    assert report.findings[-1].says == "3 deliveries and receipts of others were answered 0x00000444"
    assert conn.execute("select (select count(*) from inbox), (select count(*) from receipt)").fetchone() == (
        0,
        0,
    )


def test_a_text_that_comes_again_after_it_was_given_up_is_still_counted(db):
    async def play():
        async with Carrier() as carrier:
            report = Report()
            again = {
                # When the second text, too, was answered: by then the first one was given up.
                Status.ESME_RSYSERR: lambda: answered(carrier, Status.ESME_RTHROTTLED),
                # When the first text was taken: else the trial would be over before that one comes.
                Status.ESME_RTHROTTLED: lambda: answered(carrier, Status.ESME_ROK),
            }
            report.hooks.append(phone(carrier, again)[0])
            await trial(link_to(carrier), report, statuses=[Status.ESME_RSYSERR, Status.ESME_RTHROTTLED])
            return report

    found = asyncio.run(play()).of("try_again_status")
    assert found.well
    assert "after: ESME_RSYSERR, ESME_RTHROTTLED; it gives up after: none" in found.says


def test_nobody_texts(db):
    async def play():
        async with Carrier() as carrier:
            report = Report()
            await trial(link_to(carrier), report, timeout=0.2)
            return report

    found = asyncio.run(play()).of("deliveries")
    assert (found.well, found.says) == (False, "the text did not come")


def test_an_smsc_that_never_delivers_again(db):
    async def play():
        async with Carrier() as carrier:
            report = Report()
            report.hooks.append(phone(carrier, {})[0])
            await trial(link_to(carrier), report, timeout=0.2, statuses=[Status.ESME_RSYSERR])
            return report

    found = asyncio.run(play()).of("try_again_status")
    assert found.well is False
    assert "it delivers again after: none; it gives up after: ESME_RSYSERR" in found.says


def test_a_link_that_an_engine_holds_is_left_alone(conn, lan):
    async def play():
        async with Carrier() as carrier, engine(carrier):
            await carrier.bound()
            report = Report()
            await trial(link_to(carrier), report)
            assert len(carrier.binds) == 1
            assert await carrier.deliver(OTHER) == Status.ESME_ROK
            return report

    [found] = asyncio.run(play()).findings
    assert (found.well, found.says) == (False, "an engine holds it")
    assert "Stop every engine" in found.mend


def test_no_engine_takes_the_link_while_it_is_tried(conn, lan, monkeypatch):
    monkeypatch.setattr(esme, "HEARTBEAT", 0.1)

    async def play():
        async with Carrier() as carrier:
            # It lasts until its text has come, and come again.
            report = Report()
            options = {"timeout": 30.0, "statuses": [Status.ESME_RSYSERR]}
            trying = asyncio.create_task(trial(link_to(carrier), report, **options))
            await carrier.bound()
            async with engine(carrier) as running:
                await until(lambda: running.esmes[0].state == "held by another engine")
                await asyncio.sleep(0.5)
                assert len(carrier.binds) == 1
                assert running.esmes[0].state == "held by another engine"
                await until(lambda: report.findings and report.findings[-1].says.startswith("text "))
                asked, _ = phone(carrier, {Status.ESME_RSYSERR: 0.01})
                asked(report.findings[-1].says)
                await trying
                assert report.of("try_again_status").well
                await carrier.bound_again(1)
                assert await carrier.deliver(OTHER) == Status.ESME_ROK

    asyncio.run(play())


def test_a_bind_that_is_refused(db):
    async def play():
        async with Carrier(password="another") as carrier:
            report = Report()
            await trial(link_to(carrier), report)
            return report

    found = asyncio.run(play()).of("bind as transceiver")
    assert (found.well, found.says) == (False, "ESME_RINVPASWD")
    assert "password" in found.mend


def test_a_pair_of_binds_is_tried_as_a_pair(db):
    async def play():
        async with Carrier() as carrier:
            report = Report()
            await trial(link_to(carrier, bind="pair"), report, deliveries=False, send_to="84900000001")
            assert {bind.command_id for bind in carrier.binds} == {
                Command.BIND_RECEIVER,
                Command.BIND_TRANSMITTER,
            }
            return report

    report = asyncio.run(play())
    assert report.of("bind as receiver").well and report.of("bind as transmitter").well
    assert report.of("sending").well


@asynccontextmanager
async def something(serve):
    """Anything but an SMSC."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    server.port = server.sockets[0].getsockname()[1]
    async with server:
        yield server


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "framing error"),
        (b"", "the connection ended: bind timeout"),
        (None, "the connection ended: peer gone"),
        (encode(Simple(Command.GENERIC_NACK, 0x444, 1)), "0x00000444"),
        (encode(BindResp(Command.BIND_TRANSCEIVER_RESP, 0xFFFF_FFFF, 1)), "0xffffffff"),
    ],
)
def test_what_is_no_smsc_or_an_odd_one(db, first, says):
    async def play():
        async def serve(reader, writer):
            if first:
                writer.write(first)
            if first is not None:
                await reader.read()
            writer.close()

        async with something(serve) as peer:
            report = Report()
            await trial(link_to(peer, response_timeout=0.3), report)
            return report

    found = asyncio.run(play()).of("bind as transceiver")
    assert found.well is False
    assert says in found.says


def test_nobody_listens(db):
    report = Report()
    asyncio.run(trial(Link(name="viettel", host="127.0.0.1", port=1), report))
    assert "Connection refused" in report.of("bind as transceiver").says


def test_the_certificate_is_looked_at(db, certificate):  # noqa: F811 - it holds for a day
    pem, context = certificate

    async def play(**tls):
        async with Carrier(tls=context) as carrier:
            report = Report()
            await trial(link_to(carrier, tls=tls or True), report, deliveries=False)
            return report

    report = asyncio.run(play(ca_file=pem))
    assert report.of("TLS").well is False
    assert re.search(r"trusted and holds until \d{4}-\d\d-\d\d \(0 days\)", report.of("TLS").says)
    assert report.of("enquire_link").well
    assert "not checked" in asyncio.run(play(verify=False)).of("TLS").says
    untrusted = asyncio.run(play())
    assert (untrusted.of("TLS").well, len(untrusted.findings)) == (False, 1)
    assert "self-signed" in untrusted.of("TLS").says.replace("self signed", "self-signed")


# --- what is sent ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message_id", "in_receipt", "form", "well"),
    [
        (lambda n: str(1000 + n), lambda n: str(1000 + n), "decimal", True),
        (lambda n: f"{1000 + n:010}", lambda n: str(1000 + n), "decimal, with leading zeros", True),
        (lambda n: f"{0xABC0 + n:X}", lambda n: str(0xABC0 + n), "hexadecimal", True),
        (lambda n: f"m-{n}", lambda n: f"x-{n}", "neither decimal nor hexadecimal", False),
        (lambda n: "1", lambda n: str(500 + n), "always the same", False),
        (lambda n: "", lambda n: str(500 + n), "empty", False),
    ],
)
def test_ids_and_receipts(db, message_id, in_receipt, form, well):
    async def play():
        async with Carrier() as carrier:
            carrier.message_id = message_id
            report = Report()

            async def receipts():
                for n in (1, 2):
                    await carrier.replies(n)
                    text = f"id:{in_receipt(n)} sub:001 dlvrd:001 stat:DELIVRD err:000"
                    while await carrier.deliver(text, esm_class=4) and well:
                        await asyncio.sleep(0.05)

            both = asyncio.create_task(receipts())
            options = {"deliveries": False, "send_to": "84900000001", "timeout": 1.0}
            await trial(link_to(carrier), report, **options)
            await both
            assert [pdu.destination for pdu in carrier.submitted] == ["84900000001"] * 2
            assert {pdu.registered_delivery for pdu in carrier.submitted} == {1}
            return report

    report = asyncio.run(play())
    assert report.of("sending").says.split(": receipts")[0] == f"ESME_ROK; the message_ids are {form}"
    assert report.of("receipts").well is well


def test_what_is_refused_is_told_with_what_the_engine_makes_of_it(db):
    async def play():
        async with Carrier() as carrier:
            carrier.statuses = [Status.ESME_RINVSRCADR]
            report = Report()
            await trial(link_to(carrier), report, deliveries=False, send_to="84900000001")
            return report

    found = asyncio.run(play()).of("sending")
    assert (found.well, found.says) == (False, "ESME_RINVSRCADR, which the engine takes as final")


def test_forms_of_ids():
    assert id_form(["1", "2"]) == "decimal"
    assert id_form(["01", "2"]) == "decimal, with leading zeros"
    assert id_form(["1a", "2"]) == "hexadecimal"
    assert id_form(["1g"]) == "neither decimal nor hexadecimal"


# --- as a command ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_script_in_place_of_a_person_against_the_simulator(conn):
    """It reads what is asked for and texts it; another person's message waits for the engine."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CAPLAI_")}
    environment |= {"CAPLAI_DATABASE_URL": conninfo(), "CAPLAI_KEYRING": str(settings.KEYRING.path)}

    async def play():
        rules = Rules(retries=100, pause=0.1, longest_pause=0.2)
        async with Simulator(SimulatorConfig(rules=rules)) as simulator:
            link = {"name": "sim", "host": "127.0.0.1", "port": simulator.smpp_port, "password": "secret"}
            other = await simulator.send("84327000687", OTHER)
            command = "-m caplai doctor --link sim --timeout 10 --send-to 0327000686"
            running = await asyncio.create_subprocess_exec(
                sys.executable,
                *command.split(),
                env=environment | {"CAPLAI_LINKS": json.dumps([link])},
                stdout=asyncio.subprocess.PIPE,
            )
            said = ""
            async for line in running.stdout:
                said += line.decode()
                if found := re.search(r'text "(.+)" from', line.decode()):
                    await simulator.send("84327000686", found[1])
            await running.wait()
            assert other.state is State.SENDING
            return running.returncode, said

    status, said = asyncio.run(play())
    assert status == 0, said
    assert "BAD" not in said
    assert 'try_again_status = "ESME_RSYSERR"' in said
    assert "two came (DELIVRD), their ids as in the answer" in said
    assert len(re.findall(r"it came again after \d", said)) == 4
    assert "84327000686" not in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--link", "nobody"], "no link nobody; configured are: none"),
        (["--send-to", "0327000686"], "need --link"),
        (["--status", "ESME_RSYSERR"], "need --link"),
    ],
)
def test_wrong_use(transactional_db, monkeypatch, words, says):
    monkeypatch.setenv("CAPLAI_DATABASE_URL", conninfo())
    done = CliRunner().invoke(main, ["doctor", *words])
    assert done.exit_code == 2
    assert says in done.stderr


@pytest.mark.parametrize("words", [["--status", "ESME_RTROTTLED"], ["--status", "0"], ["--send-to", "12"]])
def test_wrong_values(transactional_db, monkeypatch, words):
    monkeypatch.setenv("CAPLAI_DATABASE_URL", conninfo())
    monkeypatch.setenv("CAPLAI_LINKS", json.dumps([{"name": "viettel", "host": "127.0.0.1", "port": 1}]))
    done = CliRunner().invoke(main, ["doctor", "--link", "viettel", *words])
    assert done.exit_code == 2
    assert words[0] in done.stderr
