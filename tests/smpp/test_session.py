"""The session: the table, the window, the timers, and two sessions talking to each other."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caplai.smpp import session as session_module
from caplai.smpp.pdu import (
    Bind,
    BindKind,
    BindResp,
    Command,
    Decoder,
    EncodeError,
    ShortMessage,
    ShortMessageResp,
    Simple,
    Status,
    Tag,
    Unknown,
    encode,
)
from caplai.smpp.session import (
    Alive,
    BindRefused,
    BindRequested,
    Bound,
    Closed,
    Ignored,
    LocalProtocolError,
    Request,
    RequestLost,
    Response,
    Role,
    Session,
    State,
    Timers,
)

TIMERS = Timers(enquire_link=30.0, response=10.0, bind=5.0)
KINDS = {
    State.BOUND_TX: BindKind.TRANSMITTER,
    State.BOUND_RX: BindKind.RECEIVER,
    State.BOUND_TRX: BindKind.TRANSCEIVER,
}
NACK = Command.GENERIC_NACK


def sent(session):
    """What the session wants written, read as the peer would."""
    return list(Decoder().feed(session.data_to_send()))


def submit(text=b"hello"):
    return ShortMessage(Command.SUBMIT_SM, source="8079", destination="84327000686", short_message=text)


def deliver(text=b"BH MK 0123456789", sequence=7):
    return ShortMessage(
        Command.DELIVER_SM, sequence=sequence, source="84327000686", destination="8079", short_message=text
    )


def session_in(role, state, *, kind=BindKind.TRANSCEIVER, window=3, now=0.0):
    """A session that came to this state by the wire, with nothing left to send."""
    session = Session(role, window=window, timers=TIMERS, now=now)
    kind = KINDS.get(state, kind)
    if state is State.CLOSED:
        session.closed_by_peer(now)
    elif state is not State.OPEN:
        if role is Role.ESME:
            session.bind(kind, system_id="caplai", password="s3cr3t", now=now)
        else:
            session.receive(encode(Bind(kind.value, 0, 1, "caplai", "s3cr3t")), now)
        if state is not State.BINDING:
            if role is Role.ESME:
                session.receive(encode(BindResp(kind.value | 0x80000000, 0, 1, "SMSC")), now)
            else:
                session.accept_bind(Bind(kind.value, 0, 1), "SMSC", now)
            if state is State.UNBINDING:
                session.unbind(now)
    session.data_to_send()
    assert session.state is state
    return session


def bound_esme(**options):
    return session_in(Role.ESME, State.BOUND_TRX, **options)


# --- the table (§2.2, table 2-1 in §2.3) ------------------------------------------------------------------

BOUND = {State.BOUND_TX, State.BOUND_RX, State.BOUND_TRX}
LINKED = BOUND | {State.UNBINDING}
# Which requests of the peer are legal, in which of our states, when we are the ESME and when the SMSC.
TAKEN = {
    Command.BIND_TRANSMITTER: (set(), {State.OPEN}),
    Command.BIND_RECEIVER: (set(), {State.OPEN}),
    Command.BIND_TRANSCEIVER: (set(), {State.OPEN}),
    Command.OUTBIND: ({State.OPEN}, set()),
    Command.SUBMIT_SM: (set(), {State.BOUND_TX, State.BOUND_TRX, State.UNBINDING}),
    Command.DELIVER_SM: ({State.BOUND_RX, State.BOUND_TRX, State.UNBINDING}, set()),
    Command.DATA_SM: (
        {State.BOUND_RX, State.BOUND_TRX, State.UNBINDING},
        {State.BOUND_TX, State.BOUND_TRX, State.UNBINDING},
    ),
    Command.ENQUIRE_LINK: (LINKED, LINKED),
    Command.UNBIND: (LINKED, LINKED),
}
REQUESTS = set(TAKEN)
RESPONSES = set(Command) - REQUESTS


def any_pdu(command):
    if command in (Command.SUBMIT_SM, Command.DELIVER_SM):
        return ShortMessage(command, 0, 99, source="1", destination="2", short_message=b"x")
    if command == Command.DATA_SM:
        return ShortMessage(command, 0, 99, source="1", destination="2", tlvs=[(Tag.MESSAGE_PAYLOAD, b"x")])
    if command in (Command.SUBMIT_SM_RESP, Command.DELIVER_SM_RESP, Command.DATA_SM_RESP):
        return ShortMessageResp(command, 0, 99, "1")
    if "BIND_" in command.name and command.name.endswith("_RESP") and command != Command.UNBIND_RESP:
        return BindResp(command, 0, 99, "SMSC")
    if command in (
        Command.BIND_RECEIVER,
        Command.BIND_TRANSMITTER,
        Command.BIND_TRANSCEIVER,
        Command.OUTBIND,
    ):
        return Bind(command, 0, 99, "caplai", "s3cr3t")
    return Simple(command, 0, 99)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("command", sorted(REQUESTS))
def test_every_request_in_every_state(command, state, role):
    session = session_in(role, state)
    events = session.receive(encode(any_pdu(command)), 1.0)
    answers = sent(session)
    if state is State.CLOSED:
        assert (events, answers) == ([], [])
    elif state in TAKEN[command][role is Role.SMSC]:
        after = state
        match command:
            case Command.ENQUIRE_LINK:
                assert events == []
                assert answers == [Simple(Command.ENQUIRE_LINK_RESP, 0, 99)]
            case Command.UNBIND:
                after = State.CLOSED
                assert [type(event) for event in events] == [Closed]
                assert answers == [Simple(Command.UNBIND_RESP, 0, 99)]
            case Command.OUTBIND:
                assert [type(event) for event in events] == [Ignored]
                assert answers == []
            case Command.SUBMIT_SM | Command.DELIVER_SM | Command.DATA_SM:
                assert events == [Request(any_pdu(command))]
                assert answers == []
            case _:
                after = State.BINDING
                assert events == [BindRequested(any_pdu(command))]
                assert answers == []
        assert session.state is after
    elif state is State.BINDING and role is Role.ESME and command in (Command.DELIVER_SM, Command.DATA_SM):
        assert (events, answers) == ([], [])  # kept until the bind is answered
    else:
        assert session.state is state
        assert [(type(event), event.command_id) for event in events] == [(Ignored, command)]
        if command == Command.OUTBIND:
            assert answers == []
        else:
            [answer] = answers
            assert (answer.command_id, answer.sequence) == (command | 0x80000000, 99)
            already = role is Role.SMSC and state in BOUND and isinstance(any_pdu(command), Bind)
            assert answer.status == (Status.ESME_RALYBND if already else Status.ESME_RINVBNDSTS)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("command", sorted(RESPONSES))
def test_a_response_that_matches_nothing_is_dropped_in_every_state(command, state, role):
    session = session_in(role, state)
    events = session.receive(encode(any_pdu(command)), 1.0)
    expected = [] if state is State.CLOSED else [(Ignored, command)]
    assert [(type(event), event.command_id) for event in events] == expected
    assert sent(session) == []  # a response is never answered
    assert session.state is state


def attempts(session):
    return {
        **{
            kind.value: lambda kind=kind: session.bind(kind, system_id="a", password="b", now=1.0)
            for kind in BindKind
        },
        Command.SUBMIT_SM: lambda: session.request(submit(), 1.0),
        Command.DELIVER_SM: lambda: session.request(deliver(), 1.0),
        Command.DATA_SM: lambda: session.request(any_pdu(Command.DATA_SM), 1.0),
        Command.UNBIND: lambda: session.unbind(1.0),
    }


# Which requests we may send, in which of our states, as the ESME and as the SMSC.
MAY_SEND = {
    Command.BIND_TRANSMITTER: ({State.OPEN}, set()),
    Command.BIND_RECEIVER: ({State.OPEN}, set()),
    Command.BIND_TRANSCEIVER: ({State.OPEN}, set()),
    Command.SUBMIT_SM: ({State.BOUND_TX, State.BOUND_TRX}, set()),
    Command.DELIVER_SM: (set(), {State.BOUND_RX, State.BOUND_TRX}),
    Command.DATA_SM: ({State.BOUND_TX, State.BOUND_TRX}, {State.BOUND_RX, State.BOUND_TRX}),
    Command.UNBIND: (BOUND, BOUND),
}


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("command", sorted(MAY_SEND))
def test_every_request_of_ours_in_every_state(command, state, role):
    session = session_in(role, state)
    attempt = attempts(session)[command]
    if state in MAY_SEND[command][role is Role.SMSC]:
        attempt()
        assert [pdu.command_id for pdu in sent(session)] == [command]
        leads_to = {Command.UNBIND: State.UNBINDING}
        leads_to |= dict.fromkeys([kind.value for kind in BindKind], State.BINDING)
        assert session.state is leads_to.get(command, state)
    elif (command, state) == (Command.UNBIND, State.UNBINDING):
        attempt()
        assert sent(session) == []
    else:
        with pytest.raises(LocalProtocolError):
            attempt()
        assert sent(session) == []
        assert session.state is state


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("state", State)
def test_free_is_the_window_only_where_a_message_may_be_sent(state, role):
    command = Command.SUBMIT_SM if role is Role.ESME else Command.DELIVER_SM
    expected = 3 if state in MAY_SEND[command][role is Role.SMSC] else 0
    assert session_in(role, state).free == expected


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("state", State)
def test_respond_in_every_state(state, role):
    session = session_in(role, state)
    pdu = deliver() if role is Role.ESME else submit()
    if state in LINKED:
        assert session.respond(pdu, now=1.0)
        assert [answer.command_id for answer in sent(session)] == [pdu.command_id | 0x80000000]
    elif state is State.CLOSED:
        assert not session.respond(pdu, now=1.0)
        assert sent(session) == []
    else:
        with pytest.raises(LocalProtocolError):
            session.respond(pdu, now=1.0)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("state", State)
def test_answering_a_bind_in_every_state(state, role):
    for answer in (
        lambda s: s.accept_bind(Bind(9, 0, 5), "SMSC", 1.0),
        lambda s: s.refuse_bind(Bind(9, 0, 5), 14, 1.0),
    ):
        session = session_in(role, state)
        if role is Role.SMSC and state is State.BINDING:
            assert answer(session)
        elif state is State.CLOSED:
            assert not answer(session)
        else:
            with pytest.raises(LocalProtocolError):
                answer(session)


def test_the_table_leads_nowhere_that_it_does_not_know():
    assert set(session_module.LEGAL) == set(session_module.NEXT) == set(State)
    for transitions in session_module.NEXT.values():
        assert set(transitions.values()) <= set(State)


# --- binding ----------------------------------------------------------------------------------------------


def test_what_comes_before_the_bind_response_is_kept_until_it_has_come():
    session = session_in(Role.ESME, State.BINDING, kind=BindKind.TRANSCEIVER)
    early = encode(deliver()) + encode(any_pdu(Command.DATA_SM))
    assert session.receive(early, 1.0) == []
    bound, *requests = session.receive(encode(BindResp(0x80000009, 0, 1, "SMSC")), 1.0)
    assert bound == Bound(BindKind.TRANSCEIVER, "SMSC")
    assert [event.pdu.command_id for event in requests] == [Command.DELIVER_SM, Command.DATA_SM]
    assert session.respond(requests[0], now=1.0)


def test_what_comes_before_a_bind_that_is_refused_is_forgotten():
    session = session_in(Role.ESME, State.BINDING, kind=BindKind.TRANSCEIVER)
    session.receive(encode(deliver()), 1.0)
    assert session.receive(encode(BindResp(0x80000009, 0x0E, 1)), 1.0) == [BindRefused(0x0E)]
    session.bind(BindKind.TRANSCEIVER, system_id="a", password="b", now=1.0)
    assert session.receive(encode(BindResp(0x80000009, 0, 2, "SMSC")), 1.0) == [
        Bound(BindKind.TRANSCEIVER, "SMSC")
    ]


def test_no_more_than_a_bounded_number_is_kept_before_the_bind_response():
    session = session_in(Role.ESME, State.BINDING, kind=BindKind.TRANSCEIVER)
    sent(session)
    events = session.receive(encode(deliver()) * (session_module.MOST_EARLY + 1), 1.0)
    assert [type(event) for event in events] == [Ignored]
    assert [answer.status for answer in sent(session)] == [Status.ESME_RINVBNDSTS]


@pytest.mark.parametrize(("state", "kind"), KINDS.items())
def test_two_sessions_bind(state, kind):
    esme, smsc = Session(Role.ESME, now=0.0), Session(Role.SMSC, now=0.0)
    esme.bind(
        kind,
        system_id="caplai",
        password="s3cr3t",
        system_type="VMA",
        addr_ton=1,
        address_range="8079",
        now=0.0,
    )
    [asked] = smsc.receive(esme.data_to_send(), 0.0)
    assert (asked.pdu.kind, asked.pdu.system_id, asked.pdu.password) == (kind, "caplai", "s3cr3t")
    assert (asked.pdu.system_type, asked.pdu.addr_ton, asked.pdu.address_range) == ("VMA", 1, "8079")
    assert smsc.accept_bind(asked.pdu, "SMSC", 0.0)
    assert esme.receive(smsc.data_to_send(), 0.0) == [Bound(kind, "SMSC", 0x34)]
    assert esme.state is smsc.state is state
    esme.unbind(1.0)
    assert [type(event) for event in smsc.receive(esme.data_to_send(), 1.0)] == [Closed]
    assert esme.receive(smsc.data_to_send(), 1.0) == [Closed("unbound")]
    assert esme.next_deadline() is smsc.next_deadline() is None


def test_interface_version_is_told_to_peers_that_know_optional_parameters():
    for version, tlvs in ((0x34, [(0x0210, b"\x34")]), (0x33, [])):
        smsc = Session(Role.SMSC, now=0.0)
        [asked] = smsc.receive(encode(Bind(9, 0, 1, "a", "b", interface_version=version)), 0.0)
        smsc.accept_bind(asked.pdu, "SMSC", 0.0)
        assert sent(smsc) == [BindResp(0x80000009, 0, 1, "SMSC", tlvs)]


def test_a_refused_bind_may_be_tried_again():
    esme, smsc = Session(Role.ESME, now=0.0), Session(Role.SMSC, now=0.0)
    for password in ("wrong", "right"):
        esme.bind(BindKind.RECEIVER, system_id="caplai", password=password, now=0.0)
        [asked] = smsc.receive(esme.data_to_send(), 0.0)
        if asked.pdu.password == "right":
            smsc.accept_bind(asked.pdu, "SMSC", 0.0)
            assert esme.receive(smsc.data_to_send(), 0.0) == [Bound(BindKind.RECEIVER, "SMSC", 0x34)]
        else:
            smsc.refuse_bind(asked.pdu, Status.ESME_RINVPASWD, 0.0)
            assert esme.receive(smsc.data_to_send(), 0.0) == [BindRefused(Status.ESME_RINVPASWD)]
            assert esme.state is smsc.state is State.OPEN


@pytest.mark.parametrize("status", [0, Status.ESME_RINVCMDID])
def test_generic_nack_refuses_a_bind(status):
    esme = session_in(Role.ESME, State.BINDING)
    assert esme.receive(encode(Simple(NACK, status, 1)), 1.0) == [BindRefused(status)]
    assert esme.state is State.OPEN


def test_the_answer_to_another_kind_of_bind_binds_nothing():
    esme = session_in(Role.ESME, State.BINDING, kind=BindKind.TRANSCEIVER)
    [event] = esme.receive(encode(BindResp(Command.BIND_RECEIVER_RESP, 0, 1, "SMSC")), 1.0)
    assert isinstance(event, Ignored)
    assert esme.state is State.BINDING


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("state", [State.OPEN, State.BINDING])
def test_not_bound_in_time(state, role):
    session = session_in(role, state)
    assert session.next_deadline() == 5.0
    assert session.tick(4.9) == []
    assert session.tick(5.0) == [Closed("bind timeout")]
    assert session.tick(6.0) == []


def test_a_late_bind_has_its_full_time():
    esme = Session(Role.ESME, timers=TIMERS, now=0.0)
    esme.bind(BindKind.RECEIVER, system_id="a", password="b", now=4.0)
    assert esme.next_deadline() == 9.0


# --- requests and responses -------------------------------------------------------------------------------


def test_requests_fill_the_window_and_responses_free_it():
    esme = bound_esme(window=3)
    sequences = [esme.request(submit(), 1.0, context=name) for name in "abc"]
    assert (esme.free, esme.pending) == (0, 3)
    with pytest.raises(LocalProtocolError, match="window of 3"):
        esme.request(submit(), 1.0)
    written = sent(esme)
    assert [pdu.sequence for pdu in written] == sequences
    # Answers may come in any order (§2.8): the second first.
    [second] = esme.receive(encode(ShortMessageResp(Command.SUBMIT_SM_RESP, 0, sequences[1], "id-b")), 2.0)
    assert (second.context, second.request, second.sent_at) == ("b", written[1], 1.0)
    assert second.pdu.message_id == "id-b"
    assert second.accepted
    assert (esme.free, esme.pending) == (1, 2)


def test_an_error_and_an_unknown_status_are_responses():
    esme = bound_esme()
    for status in (Status.ESME_RTHROTTLED, 0x0500):
        sequence = esme.request(submit(), 1.0, "x")
        [event] = esme.receive(encode(ShortMessageResp(Command.SUBMIT_SM_RESP, status, sequence)), 1.0)
        assert (event.context, event.pdu.status, event.accepted) == ("x", status, False)


@pytest.mark.parametrize("status", [0, Status.ESME_RINVCMDID])
def test_generic_nack_is_a_response_that_accepts_nothing(status):
    esme = bound_esme()
    sequence = esme.request(submit(), 1.0, "x")
    [event] = esme.receive(encode(Simple(NACK, status, sequence)), 1.0)
    assert (event.context, event.pdu, event.accepted) == ("x", Simple(NACK, status, sequence), False)
    assert esme.pending == 0


@pytest.mark.parametrize(
    "wrong",
    [
        ShortMessageResp(Command.DELIVER_SM_RESP),
        BindResp(Command.BIND_TRANSCEIVER_RESP),
        Simple(Command.ENQUIRE_LINK_RESP),
        Simple(Command.UNBIND_RESP),
        Unknown(0x80000104, 0, 0, b""),
    ],
    ids=lambda pdu: hex(pdu.command_id),
)
def test_a_response_of_another_type_leaves_the_request_pending(wrong):
    esme = bound_esme()
    wrong.sequence = esme.request(submit(), 1.0, "x")
    esme.data_to_send()
    assert [type(event) for event in esme.receive(encode(wrong), 1.0)] == [Ignored]
    assert esme.pending == 1
    assert esme.confirmed_at == 0.0  # the bind; this proved nothing
    assert sent(esme) == []


def test_a_message_response_does_not_answer_an_enquire_link():
    esme = bound_esme()
    esme.tick(30.0)
    [enquiry] = sent(esme)
    [event] = esme.receive(encode(ShortMessageResp(Command.SUBMIT_SM_RESP, 0, enquiry.sequence)), 31.0)
    assert isinstance(event, Ignored)
    assert esme.tick(40.0) == [Closed("silent peer")]


def test_unanswered_requests_are_lost_one_by_one_and_late_answers_match_nothing():
    esme = bound_esme()
    first, second = esme.request(submit(), 1.0, "first"), esme.request(submit(), 2.0, "second")
    assert esme.next_deadline() == 11.0
    assert esme.tick(10.9) == []
    [lost] = esme.tick(11.0)
    assert (type(lost), lost.context, lost.reason) == (RequestLost, "first", "no response")
    assert esme.next_deadline() == 12.0
    late = ShortMessageResp(Command.SUBMIT_SM_RESP, 0, first, "1")
    assert [type(event) for event in esme.receive(encode(late), 11.5)] == [Ignored]
    in_time = ShortMessageResp(Command.SUBMIT_SM_RESP, 0, second, "2")
    assert [event.context for event in esme.receive(encode(in_time), 11.9)] == ["second"]


def test_sequence_numbers_wrap_and_skip_what_is_pending():
    esme = bound_esme(window=10)
    esme._sequence = 0x7FFFFFFD
    assert [esme.request(submit(), 1.0) for _ in range(4)] == [0x7FFFFFFE, 0x7FFFFFFF, 1, 2]
    esme._sequence = 0x7FFFFFFD
    assert esme.request(submit(), 1.0) == 3
    assert len({pdu.sequence for pdu in sent(esme)}) == 5


def test_sequence_numbers_skip_a_pending_enquire_link():
    esme = bound_esme()
    esme.tick(30.0)
    [enquiry] = sent(esme)
    esme._sequence = enquiry.sequence - 1
    assert esme.request(submit(), 30.0) == enquiry.sequence + 1


def test_what_cannot_be_written_is_not_pending():
    esme = bound_esme()
    with pytest.raises(EncodeError):
        esme.request(submit(b"x" * 255), 1.0)
    assert (esme.pending, esme.data_to_send()) == (0, b"")


def test_requests_of_the_peer_are_answered_by_the_caller_in_any_order():
    smsc = session_in(Role.SMSC, State.BOUND_TRX)
    one, two = submit(b"one"), submit(b"two")
    one.sequence, two.sequence = 5, 6
    requests = smsc.receive(encode(one) + encode(two), 1.0)
    assert requests == [Request(one), Request(two)]
    assert smsc.respond(requests[1], message_id="id-2", now=1.0)
    assert smsc.respond(requests[0].pdu, Status.ESME_RTHROTTLED, now=1.0)
    assert sent(smsc) == [
        ShortMessageResp(Command.SUBMIT_SM_RESP, 0, 6, "id-2"),
        ShortMessageResp(Command.SUBMIT_SM_RESP, Status.ESME_RTHROTTLED, 5),
    ]


def test_the_smsc_delivers():
    smsc = session_in(Role.SMSC, State.BOUND_RX)
    sequence = smsc.request(deliver(sequence=0), 1.0, "citizen")
    [event] = smsc.receive(encode(ShortMessageResp(Command.DELIVER_SM_RESP, 0, sequence)), 1.2)
    assert isinstance(event, Response)
    assert event.context == "citizen"


# --- alive, confirmed, silent -----------------------------------------------------------------------------


def test_an_idle_peer_is_asked_and_answers():
    esme = bound_esme()
    assert esme.next_deadline() == 30.0
    assert esme.tick(29.9) == []
    assert sent(esme) == []
    assert esme.tick(30.0) == []
    [enquiry] = sent(esme)
    assert enquiry.command_id == Command.ENQUIRE_LINK
    assert esme.next_deadline() == 40.0
    assert esme.free == 3  # it takes no place in the window
    answer = encode(Simple(Command.ENQUIRE_LINK_RESP, 0, enquiry.sequence))
    assert esme.receive(answer, 33.0) == [Alive(30.0)]
    assert esme.next_deadline() == 63.0


def test_a_silent_peer_is_given_up_and_everything_pending_comes_back():
    esme = bound_esme()
    esme.tick(30.0)
    esme.request(submit(), 31.0, "x")
    assert esme.tick(39.9) == []
    lost, closed = esme.tick(40.0)
    assert (lost.context, lost.reason) == ("x", "silent peer")
    assert closed == Closed("silent peer")
    assert esme.next_deadline() is None


def test_a_peer_that_talks_but_answers_nothing_is_asked_too():
    """What it sends proves that we hear it, not that it hears us."""
    esme = bound_esme()
    for second in range(1, 30):
        esme.receive(encode(deliver(sequence=second)), float(second))
    esme.tick(30.0)
    assert [pdu.command_id for pdu in sent(esme)] == [Command.ENQUIRE_LINK]


def test_the_smsc_asks_too():
    smsc = Session(Role.SMSC, timers=TIMERS, now=0.0)
    [asked] = smsc.receive(encode(Bind(9, 0, 1, "a", "b")), 2.0)
    smsc.accept_bind(asked.pdu, "SMSC", 3.0)
    smsc.data_to_send()
    assert smsc.next_deadline() == 33.0
    smsc.tick(33.0)
    assert [pdu.command_id for pdu in sent(smsc)] == [Command.ENQUIRE_LINK]


def test_other_answers_do_not_stand_in_for_that_of_an_enquire_link():
    esme = bound_esme()
    esme.tick(30.0)
    sequence = esme.request(submit(), 31.0)
    esme.receive(encode(ShortMessageResp(Command.SUBMIT_SM_RESP, 0, sequence)), 32.0)
    assert esme.next_deadline() == 40.0


def test_an_answered_request_is_as_good_as_an_enquire_link():
    esme = bound_esme()
    sequence = esme.request(submit(), 20.0)
    esme.receive(encode(ShortMessageResp(Command.SUBMIT_SM_RESP, 0, sequence)), 21.0)
    assert esme.next_deadline() == 51.0


def test_generic_nack_to_an_enquire_link_is_a_sign_of_life():
    esme = bound_esme()
    esme.tick(30.0)
    [enquiry] = sent(esme)
    assert esme.receive(encode(Simple(NACK, 3, enquiry.sequence)), 31.0) == [Alive(30.0)]
    assert esme.tick(40.0) == []


def test_confirmed_at_is_the_sending_of_the_latest_answered_request():
    esme = Session(Role.ESME, timers=TIMERS, now=0.0)
    assert esme.confirmed_at is None
    esme.bind(BindKind.TRANSCEIVER, system_id="a", password="b", now=1.0)
    esme.receive(encode(BindResp(0x80000009, 0, 1, "SMSC")), 2.0)
    assert esme.confirmed_at == 1.0
    first, second = esme.request(submit(), 3.0), esme.request(submit(), 4.0)
    esme.receive(encode(ShortMessageResp(Command.SUBMIT_SM_RESP, 8, second)), 5.0)
    assert esme.confirmed_at == 4.0  # an error answers as well
    esme.receive(encode(ShortMessageResp(Command.SUBMIT_SM_RESP, 0, first)), 6.0)
    assert esme.confirmed_at == 4.0  # the older answer takes nothing back
    esme.respond(deliver(), now=7.0)
    assert esme.confirmed_at == 4.0  # nothing proves yet that this arrived
    esme.tick(36.0)
    [*_, enquiry] = sent(esme)
    esme.receive(encode(Simple(Command.ENQUIRE_LINK_RESP, 0, enquiry.sequence)), 37.0)
    assert esme.confirmed_at == 36.0


# --- what the peer does wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("state", [state for state in State if state is not State.CLOSED])
def test_an_unknown_command_is_nacked_and_the_session_goes_on(state):
    for role in Role:
        session = session_in(role, state)
        [event] = session.receive(encode(Unknown(0x104, 0, 42, b"body")), 1.0)
        assert event == Ignored("unknown command", 0x104)
        assert sent(session) == [Simple(NACK, Status.ESME_RINVCMDID, 42)]
        assert session.state is state


def test_an_unknown_response_is_not_answered():
    esme = bound_esme()
    assert esme.receive(encode(Unknown(0x80000104, 0, 42, b"")), 1.0) == [
        Ignored("unknown command", 0x80000104)
    ]
    assert sent(esme) == []


def test_a_bad_body_is_answered_and_the_bind_is_kept():
    esme = bound_esme()
    bad = bytes.fromhex("00000012 00000005 00000000 00000009 6162")
    events = esme.receive(bad + encode(deliver(sequence=10)), 1.0)
    assert events == [Ignored("unreadable body", Command.DELIVER_SM), Request(deliver(sequence=10))]
    assert sent(esme) == [ShortMessageResp(Command.DELIVER_SM_RESP, Status.ESME_RINVCMDLEN, 9)]
    assert esme.state is State.BOUND_TRX


def test_a_bad_body_where_the_request_is_not_legal():
    esme = session_in(Role.ESME, State.BOUND_TX)
    [event] = esme.receive(bytes.fromhex("00000012 00000005 00000000 00000009 6162"), 1.0)
    assert event == Ignored("not legal in BOUND_TX", Command.DELIVER_SM)
    assert [pdu.status for pdu in sent(esme)] == [Status.ESME_RINVBNDSTS]


def test_a_bad_bind_is_answered_and_may_be_tried_again():
    smsc = Session(Role.SMSC, now=0.0)
    [event] = smsc.receive(bytes.fromhex("00000012 00000009 00000000 00000001 6162"), 1.0)
    assert isinstance(event, Ignored)
    assert sent(smsc) == [BindResp(Command.BIND_TRANSCEIVER_RESP, Status.ESME_RINVCMDLEN, 1)]
    assert smsc.state is State.OPEN


def test_a_bad_outbind_is_not_answered():
    esme = Session(Role.ESME, now=0.0)
    [event] = esme.receive(bytes.fromhex("00000012 0000000b 00000000 00000001 6162"), 1.0)
    assert isinstance(event, Ignored)
    assert sent(esme) == []


@pytest.mark.parametrize("length", ["00000000", "0000000f", "ffffffff"])
def test_lost_framing_ends_the_session(length):
    esme = bound_esme()
    esme.request(submit(), 1.0, "x")
    esme.data_to_send()
    request, lost, closed = esme.receive(encode(deliver()) + bytes.fromhex(length), 1.0)
    assert request == Request(deliver())
    assert lost.context == "x"
    assert closed.reason.startswith("framing error: command_length")
    assert sent(esme) == [Simple(NACK, Status.ESME_RINVCMDLEN, 0)]
    assert esme.receive(encode(deliver()), 1.0) == []
    assert esme.closed


def test_the_cap_on_the_length_is_ours_to_choose():
    esme = Session(Role.ESME, max_command_length=64, now=0.0)
    [closed] = esme.receive(bytes.fromhex("00000041"), 1.0)
    assert isinstance(closed, Closed)


# --- the end ----------------------------------------------------------------------------------------------


def test_the_peer_goes_away():
    esme = bound_esme()
    esme.request(submit(), 1.0, "x")
    lost, closed = esme.closed_by_peer(2.0)
    assert (type(lost), lost.context, lost.reason) == (RequestLost, "x", "peer gone")
    assert closed == Closed("peer gone")
    assert esme.closed_by_peer(2.0) == []
    assert (esme.free, esme.pending) == (0, 0)


def test_the_peer_unbinds():
    esme = bound_esme()
    esme.request(submit(), 1.0, "x")
    esme.data_to_send()
    # What comes behind the unbind is not looked at.
    events = esme.receive(encode(Simple(Command.UNBIND, 0, 3)) + encode(deliver()), 1.0)
    assert [type(event) for event in events] == [RequestLost, Closed]
    assert sent(esme) == [Simple(Command.UNBIND_RESP, 0, 3)]


def test_unbinding_takes_what_is_on_its_way():
    esme = bound_esme()
    sequence = esme.request(submit(), 1.0, "x")
    esme.unbind(2.0)
    assert esme.free == 0
    assert esme.receive(encode(deliver()), 2.1) == [Request(deliver())]
    assert esme.respond(deliver(), now=2.2)
    [response] = esme.receive(encode(ShortMessageResp(Command.SUBMIT_SM_RESP, 0, sequence)), 2.3)
    assert response.context == "x"
    assert esme.next_deadline() == 12.0  # of the unbind
    *_, unbind, acknowledgement = sent(esme)
    assert (unbind.command_id, acknowledgement.command_id) == (Command.UNBIND, Command.DELIVER_SM_RESP)
    [closed] = esme.receive(encode(Simple(Command.UNBIND_RESP, 0, unbind.sequence)), 2.4)
    assert closed == Closed("unbound")


def test_an_unbind_that_is_refused_ends_the_session_all_the_same():
    esme = bound_esme()
    esme.unbind(2.0)
    [unbind] = sent(esme)
    answer = encode(Simple(Command.UNBIND_RESP, Status.ESME_RINVBNDSTS, unbind.sequence))
    assert esme.receive(answer, 2.1) == [Closed("unbound")]


def test_an_unbind_that_nobody_answers():
    esme = bound_esme()
    esme.request(submit(), 5.0, "x")
    esme.unbind(6.0)
    assert [event.context for event in esme.tick(15.0)] == ["x"]
    assert esme.next_deadline() == 16.0
    assert esme.tick(16.0) == [Closed("unbind unanswered")]


def test_an_unbind_during_an_enquire_link_has_its_own_time():
    esme = bound_esme()
    esme.tick(30.0)
    esme.unbind(35.0)
    enquiry, _ = sent(esme)
    assert esme.tick(40.0) == []
    esme.receive(encode(Simple(Command.ENQUIRE_LINK_RESP, 0, enquiry.sequence)), 41.0)
    assert esme.next_deadline() == 45.0


def test_both_unbind_at_once():
    esme, smsc = bound_esme(), session_in(Role.SMSC, State.BOUND_TRX)
    esme.unbind(1.0)
    smsc.unbind(1.0)
    to_smsc, to_esme = esme.data_to_send(), smsc.data_to_send()
    assert [type(event) for event in smsc.receive(to_smsc, 1.0)] == [Closed]
    assert [type(event) for event in esme.receive(to_esme, 1.0)] == [Closed]


def test_events_show_no_secret_and_no_context():
    esme = bound_esme()
    sequence = esme.request(submit(b"Mat khau: 220199"), 1.0, context={"phone": "84327000686"})
    esme.request(submit(b"Mat khau: 220199"), 1.0, context={"phone": "84327000686"})
    events = esme.receive(encode(ShortMessageResp(Command.SUBMIT_SM_RESP, 0, sequence, "1")), 1.0)
    events += esme.receive(encode(deliver()), 1.0)
    events += esme.closed_by_peer(1.0)
    smsc = Session(Role.SMSC, now=0.0)
    events += smsc.receive(encode(Bind(9, 0, 1, "caplai", "s3cr3t")), 0.0)
    assert len(events) == 5
    shown = repr(events)
    assert not [secret for secret in ("84327000686", "220199", "0123456789", "s3cr3t") if secret in shown]


# --- properties -------------------------------------------------------------------------------------------


@given(
    st.sampled_from(Role),
    st.sampled_from(State),
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(
                lambda command, status, sequence, body: (
                    b"".join(n.to_bytes(4, "big") for n in (16 + len(body), command, status, sequence)) + body
                ),
                st.sampled_from(sorted(Command)),
                st.sampled_from([0, 8, 0x500]),
                st.integers(0, 5),
                st.binary(max_size=40) | st.just(b"\0" * 20) | st.just(b""),
            ),
        ),
        max_size=10,
    ),
)
def test_whatever_the_peer_sends_nothing_raises_and_each_request_comes_back_once(role, state, pieces):
    session = session_in(role, state)
    contexts = set()
    events = []
    for now, piece in enumerate(pieces):
        if session.free:
            pdu = submit() if role is Role.ESME else deliver()
            session.request(pdu, float(now), context=now)
            contexts.add(now)
        events += session.receive(piece, float(now))
        session.data_to_send()
    events += session.closed_by_peer(100.0)
    back = [event.context for event in events if isinstance(event, Response | RequestLost)]
    assert sorted(back) == sorted(contexts)
    assert sum(isinstance(event, Closed) for event in events) == (state is not State.CLOSED)


@given(st.sampled_from(Role), st.sampled_from(State), st.booleans())
def test_ticking_at_the_deadline_always_gets_on(role, state, with_request):
    """A caller that sleeps until next_deadline() and ticks then never spins."""
    session = session_in(role, state)
    if with_request and session.free:
        session.request(submit() if role is Role.ESME else deliver(), 0.1)
    now = 0.1
    for _ in range(5):
        deadline = session.next_deadline()
        if deadline is None:
            break
        assert deadline > now
        now = deadline
        session.tick(now)
    assert session.closed


@settings(max_examples=50)
@given(
    st.lists(st.sampled_from(["submit", "deliver", "esme answers", "smsc answers"]), max_size=60), st.data()
)
def test_two_sessions_lose_nothing(steps, data):
    """Whatever order they talk in and however TCP cuts it, every message gets exactly its own answer."""
    esme, smsc = bound_esme(window=4), session_in(Role.SMSC, State.BOUND_TRX, window=4)
    asked = {esme: [], smsc: []}
    settled = []
    count = itertools.count()
    for now, step in enumerate(steps, 1):
        me = esme if step in ("submit", "esme answers") else smsc
        if step in ("submit", "deliver"):
            if me.free:
                label = next(count)
                pdu = submit(b"%d" % label) if me is esme else deliver(b"%d" % label)
                me.request(pdu, float(now), label)
        elif asked[me]:
            request = asked[me].pop(data.draw(st.integers(0, len(asked[me]) - 1)))
            me.respond(request, message_id=request.pdu.payload.decode(), now=float(now))
        for sender, receiver in ((esme, smsc), (smsc, esme)):
            stream = sender.data_to_send()
            cut = data.draw(st.integers(0, len(stream)))
            for event in receiver.receive(stream[:cut], now) + receiver.receive(stream[cut:], now):
                if isinstance(event, Request):
                    asked[receiver].append(event)
                else:
                    assert isinstance(event, Response)
                    assert event.pdu.message_id == str(event.context)
                    settled.append(event.context)
    assert len(settled) + esme.pending + smsc.pending == next(count)
    assert len(set(settled)) == len(settled)
