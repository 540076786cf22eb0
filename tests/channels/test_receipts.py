"""Receipts as carriers really send them: each is kept as it came, and matched where that can be done."""

import asyncio

from caplai.smpp.pdu import Status, Tag
from tests.channels.test_esme import outcomes, scenario  # noqa: F401 - a fixture
from tests.channels.test_hostile import settled
from tests.channels.test_submits import insert

FORMS = [
    # the message_id in the answer, and in the receipt
    ("0000001001", "1001"),
    ("1002", "0000001002"),
    ("3EB", "1003"),
    ("1004", "3ec"),
    ("00003ed", "01005"),
]


def test_the_id_in_another_form(scenario, conn):  # noqa: F811
    async def play(carrier):
        await carrier.bound()
        carrier.message_id = lambda n: FORMS[n - 1][0]
        insert(conn, "Xin chao", len(FORMS))
        await settled(conn, [("sent", 1)] * len(FORMS))
        for n, (_, receipted) in enumerate(FORMS):
            receipt = f"id:{receipted} stat:STATE-{n}"
            assert await carrier.deliver(receipt, esm_class=4) == Status.ESME_ROK

    scenario(play, receipts=True)
    found = conn.execute("select receipt from outbox order by id").fetchall()
    assert found == [(f"STATE-{n}",) for n in range(len(FORMS))]


ODD = [
    # what comes: (text, TLVs), what is kept: (state, error, its first id, of which message)
    (("id:1 sub:001 dlvrd:001 stat:DELIVRD err:000", []), ("DELIVRD", "000", "1", 0)),
    (("id:1 sub:001 dlvrd:001 stat:DELIVRD err:000", []), ("DELIVRD", "000", "1", 0)),  # again
    (("id:99999 stat:DELIVRD", []), ("DELIVRD", None, "99999", None)),
    (("id:2 stat:GONE-FISHING err:x7", []), ("GONE-FISHING", "x7", "2", 1)),
    (("stat:DELIVRD", []), ("DELIVRD", None, None, None)),
    (("", [(Tag.RECEIPTED_MESSAGE_ID, b"3\0"), (Tag.MESSAGE_STATE, b"\5")]), ("UNDELIV", None, "3", 2)),
    (("id:4 stat:ENROUTE", [(Tag.MESSAGE_STATE, b"\xc8")]), ("200", None, "4", 3)),
    (("ID:5  STAT:delivrd\r\nTEXT:id:1 stat:UNDELIV", []), ("delivrd", None, "5", 4)),
    (("\x1b\x1b\x7f id: stat:", []), (None, None, None, None)),
    (("BH MK 0123456789", []), (None, None, None, None)),  # no receipt's text at all
]


def test_odd_receipts_are_kept_raw_and_never_taken_for_messages(scenario, conn):  # noqa: F811
    async def play(carrier):
        await carrier.bound()
        insert(conn, "Xin chao", 5)
        await settled(conn, [("sent", 1)] * 5)
        for (text, tlvs), _ in ODD:
            assert await carrier.deliver(text.encode(), esm_class=4, tlvs=tlvs) == Status.ESME_ROK
        # An intermediate notification is none of a person's words either.
        assert await carrier.deliver("id:5 stat:ENROUTE", esm_class=0x20) == Status.ESME_ROK
        await asyncio.sleep(0.1)

    scenario(play, receipts=True)
    [first] = conn.execute("select min(id) from outbox").fetchone()
    rows = conn.execute(
        "select state, error, message_ids[1], outbox_id - %s from receipt order by id", [first]
    )
    assert rows.fetchall() == [kept for _, kept in ODD] + [("ENROUTE", None, "5", 4)]
    assert outcomes(conn) == []
    assert conn.execute("select receipt from outbox order by id").fetchall() == [
        (state,) for state in ("DELIVRD", "GONE-FISHING", "UNDELIV", "200", "ENROUTE")
    ]


def test_a_receipt_without_its_flag_is_known_by_its_parameter(scenario, conn):  # noqa: F811
    """Else its person would be told that the syntax was wrong."""

    async def play(carrier):
        await carrier.bound()
        insert(conn, "Xin chao")
        await settled(conn, [("sent", 1)])
        tlvs = [(Tag.RECEIPTED_MESSAGE_ID, b"1\0"), (Tag.MESSAGE_STATE, b"\2")]
        assert await carrier.deliver("id:1 stat:DELIVRD", tlvs=tlvs) == Status.ESME_ROK

    scenario(play, receipts=True)
    assert conn.execute("select receipt from outbox").fetchall() == [("DELIVRD",)]
    assert outcomes(conn) == []
