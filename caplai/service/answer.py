"""A message whose sender waits for the answer: stored, decided and answered in one transaction.

So there is nothing to lose between: a request that got no answer was not stored, or it comes again by its id and
gets the same one.
"""

from collections.abc import Callable

import psycopg

from caplai.domain.policy import SILENT, Decision
from caplai.service.deliver import compose
from caplai.service.reissue import reissue, request_of
from caplai.service.requests import Rules
from caplai.store import queues
from caplai.store.keyring import KeyringError
from caplai.store.queues import Arrival, Waiting


def answer(
    conn: psycopg.Connection,
    link: str,
    request_id: str | None,
    arrival: Arrival,
    rules: Rules,
    *,
    join: Callable[[int, dict[int, bytes], int], str],
    at_once: bool,
    decided: Callable[[Waiting, Decision], object] = lambda message, decision: None,
) -> str | None:
    """The text that answers a message which `link` brought; needs a transaction.

    It is empty where there is silence, where other parts of a long message are still to come, where the password of a
    repeated request has ended meanwhile, and unless `at_once`: then the reply has gone to the outbox. None says that
    `request_id` was another message's; nothing was stored then. `join` as for queues.accept();
    `decided` hears of a message that is new, which is to be told once it is committed.

    Raises psycopg.Error when nothing is certain, and KeyringError when this host lacks the key: roll back then.
    """
    if arrival.text is None:
        queues.lock_parts(conn, link, arrival)
        if request_id is not None and (known := queues.find_request(conn, link, request_id)):
            # It was the last part that came, so its id became the whole message's.
            if _addresses(known) != _addresses(arrival):
                return None
            return _reply(conn, known, rules) if at_once else ""
        if request_id is not None and (part := queues.find_part(conn, link, request_id)):
            return "" if part == arrival else None
        whole = queues.accept_part(conn, link, request_id, arrival, join)
        if whole is None:
            return ""
        arrival = whole
    message, new = queues.accept_request(conn, link, request_id, arrival)
    if new:
        request = request_of(message, rules)
        if at_once:
            request.reply_to.link, request.reply_to.at_once = link, True
        [decision] = reissue(conn, [request], rules)
        decided(message, decision)
        reply = _reply(conn, message, rules) if at_once else ""
        if at_once and not reply and decision.outcome not in SILENT:
            raise LookupError("a reply is not in the store")
        return reply
    if (*_addresses(message), message.text) != (*_addresses(arrival), arrival.text):
        return None
    return _reply(conn, message, rules) if at_once else ""


def _addresses(message: Waiting | Arrival) -> tuple[str, int, str]:
    return message.source, message.source_ton, message.destination


def _reply(conn: psycopg.Connection, message: Waiting, rules: Rules) -> str:
    """The text of the reply that the store holds; the same for a case as long as its password lives."""
    due = queues.find_answer(conn, message.link, message.id)
    if due is None or due.dead:
        return ""
    text = compose(due, rules.keyring())
    if text is None:
        raise KeyringError("this host lacks an issuing key")
    return text
