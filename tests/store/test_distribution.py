"""docs/scaling.md, "The tables, one by one", held against the catalog of the migrated database.

Each table has a decision there, for both ways to spread them: by cell (a PostgreSQL of its own, or a distributed
schema of Citus, for each part of the codes), and row by row (Citus' distributed and reference tables). What the
catalog forbids, or what holds in each cell only, must be named there, and nothing else.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from django.db import connection

DOCUMENT = Path(__file__).parents[2] / "docs" / "scaling.md"


@dataclass(frozen=True)
class Key:
    """What must be unique in a table, or by an exclusion constraint: then the columns that it compares by `=`."""

    name: str
    columns: frozenset[str]


@dataclass(frozen=True)
class Reference:
    """A foreign key: pairs of a column of ours and one of theirs."""

    name: str
    to: str
    pairs: frozenset[tuple[str, str]]


@dataclass
class Table:
    columns: dict[str, tuple[str, bool]] = field(default_factory=dict)
    """Name: (type with its collation, whether it is NOT NULL)."""
    made: set[str] = field(default_factory=set)
    """Columns that a sequence fills."""
    keys: list[Key] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """Triggers and rules of ours, parents that it inherits from: they forbid either way."""


def read_catalog():
    """The tables of the schema `public`, as they are."""
    tables = {}
    with connection.cursor() as cursor:

        def rows(query):
            cursor.execute(query)
            return cursor.fetchall()

        for (name,) in rows(
            "select relname from pg_class where relkind in ('r', 'p', 'v', 'm', 'f')"
            " and relnamespace = 'public'::regnamespace"
        ):
            tables[name] = Table()
        for table, column, kind, not_null, default in rows(
            "select c.relname, a.attname, format_type(a.atttypid, a.atttypmod) || ' ' || coalesce(o.collname, ''),"
            " a.attnotnull, coalesce(pg_get_expr(d.adbin, d.adrelid), '') || a.attidentity::text"
            " from pg_attribute a join pg_class c on c.oid = a.attrelid"
            " left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum"
            " left join pg_collation o on o.oid = a.attcollation"
            " where c.relkind = any('{r,p,v,m,f}') and c.relnamespace = 'public'::regnamespace"
            " and a.attnum > 0 and not a.attisdropped"
        ):
            tables[table].columns[column] = (kind, not_null)
            if default.startswith("nextval(") or default in ("a", "d"):
                tables[table].made.add(column)
        for table, name, columns in rows(
            "select t.relname, c.relname, array(select coalesce(a.attname, '(an expression)')"
            "   from unnest(i.indkey::int[]) with ordinality as k (number, nth)"
            "   left join pg_attribute a on a.attrelid = t.oid and a.attnum = k.number and k.number > 0"
            "   where nth <= i.indnkeyatts and (x.oid is null or exists ("
            "     select from pg_operator o where o.oid = x.conexclop[nth] and o.oprname = '=')))"
            " from pg_index i join pg_class c on c.oid = i.indexrelid join pg_class t on t.oid = i.indrelid"
            " left join pg_constraint x on x.conindid = i.indexrelid and x.contype = 'x'"
            " where (i.indisunique or i.indisexclusion) and t.relnamespace = 'public'::regnamespace"
        ):
            tables[table].keys.append(Key(name, frozenset(columns)))
        for table, name, to, pairs in rows(
            "select f.relname, k.conname, t.relname, array(select array[x.attname, y.attname]::text[]"
            "   from unnest(k.conkey, k.confkey) as p (ours, theirs)"
            "   join pg_attribute x on x.attrelid = f.oid and x.attnum = p.ours"
            "   join pg_attribute y on y.attrelid = t.oid and y.attnum = p.theirs)"
            " from pg_constraint k join pg_class f on f.oid = k.conrelid join pg_class t on t.oid = k.confrelid"
            " where k.contype = 'f' and f.relnamespace = 'public'::regnamespace"
        ):
            tables[table].references.append(Reference(name, to, frozenset(map(tuple, pairs))))
        for table, name in rows(
            "select c.relname, g.tgname::text from pg_trigger g join pg_class c on c.oid = g.tgrelid"
            " where not g.tgisinternal and c.relnamespace = 'public'::regnamespace"
            " union all select c.relname, r.rulename from pg_rewrite r join pg_class c on c.oid = r.ev_class"
            " where c.relnamespace = 'public'::regnamespace"
            " union all select c.relname, 'inherits from ' || p.relname from pg_inherits i"
            " join pg_class c on c.oid = i.inhrelid join pg_class p on p.oid = i.inhparent"
            " where c.relkind <> 'i' and c.relnamespace = 'public'::regnamespace"
        ):
            tables[table].others.append(name)
    return tables


@dataclass(frozen=True)
class Decision:
    """A row of the document."""

    cell: frozenset[str] | None
    """Columns of which each decides in which cell a row stands; None: each cell has all of it, or its own."""
    rows: str
    """Row by row: the distribution column, or `reference`, or `local`."""
    named: frozenset[str]
    """What it says stands in the way."""


def read_decisions(text):
    section = text.split("## The tables, one by one")[1].split("\n## ")[0]
    decisions = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != 4 or not (name := re.fullmatch(r"`(\w+)`", cells[0])):
            continue
        assert cells[1] == "every cell" or "`" in cells[1], line
        columns = re.findall(r"`(\w+)`", cells[1])
        by = re.fullmatch(r"by `(\w+)`", cells[2])
        assert by or cells[2] in ("reference", "local"), line
        named = frozenset(re.findall(r"`(\w+)`", cells[3]))
        decisions[name[1]] = Decision(
            frozenset(columns) if columns else None, by[1] if by else cells[2], named
        )
    return decisions


def in_the_way(tables, decisions):
    """What of the catalog does not go with the decisions: {table: names}."""
    found = {
        name: {*_of_cells(name, tables, decisions), *_of_rows(name, tables, decisions)}
        for name in tables.keys() & decisions.keys()
    }
    return {name: names for name, names in found.items() if names}


def _of_cells(name, tables, decisions):
    """A cell knows nothing of the others: what must be unique or refers must stay within one."""
    table, cell = tables[name], decisions[name].cell
    yield from table.others
    if cell is None:
        yield from (each.name for each in table.references if decisions[each.to].cell is not None)
        return
    yield from cell - table.columns.keys()
    for key in table.keys:
        ours_alone = (
            key.columns <= table.made
        )  # a number of the row's, which nobody outside of its cell knows
        if not (key.columns & cell or ours_alone):
            yield key.name
    for each in table.references:
        if decisions[each.to].cell is not None and not {ours for ours, _ in each.pairs} & cell:
            yield each.name


def _of_rows(name, tables, decisions):
    """Citus' rules: docs.citusdata.com, "Creating and Modifying Distributed Objects", "SQL Support and Workarounds"."""
    table, by = tables[name], decisions[name].rows
    if by == "local":
        refused = {to for to, decision in decisions.items() if decision.rows not in ("local", "reference")}
        yield from (each.name for each in table.references if each.to in refused)
        return
    yield from table.others
    if by == "reference":
        yield from (
            each.name for each in table.references if decisions[each.to].rows not in ("local", "reference")
        )
        return
    kind, not_null = table.columns.get(by, (None, False))
    if not not_null:
        yield f"{by}_may_be_null_or_missing"
    yield from (key.name for key in table.keys if by not in key.columns)
    for each in table.references:
        theirs = decisions[each.to].rows
        together = (by, theirs) in each.pairs and tables[each.to].columns[theirs][0] == kind
        if theirs != "reference" and not together:
            yield each.name


@pytest.fixture
def decisions():
    return read_decisions(DOCUMENT.read_text("utf-8"))


def test_each_table_has_a_decision(db, decisions):
    assert decisions.keys() == read_catalog().keys(), "docs/scaling.md, The tables, one by one"


def test_what_stands_in_the_way_is_what_the_document_names(db, decisions):
    named = {name: set(decision.named) for name, decision in decisions.items() if decision.named}
    assert in_the_way(read_catalog(), decisions) == named


def test_the_flow_of_a_re_issue_has_nothing_in_its_way(db, decisions):
    """What a message passes through, and the accounts, can be spread as they are."""
    flow = ("account", "reissue_case", "inbox", "outbox", "segment", "receipt", "link_session", "wording")
    assert {name for name in flow if decisions[name].named} == set()
    assert decisions["account"].rows == "code" and decisions["reissue_case"].rows == "account"


@pytest.mark.parametrize(
    ("ddl", "table", "named"),
    [
        ("create unique index planted on account (phone)", "account", {"planted"}),
        ("create unique index planted on account (lower(code))", "account", {"planted"}),
        ("create unique index planted on account (phone) include (code)", "account", {"planted"}),
        ("create unique index planted on inbox (session)", "inbox", {"planted"}),
        ("alter table reissue_case add constraint planted exclude (texts with =)", "reissue_case", {"planted"}),
        ("alter table reissue_case add constraint planted exclude using gist"
         " (tstzrange(opened_at, expires_at) with &&)", "reissue_case", {"planted"}),
        ("alter table reissue_case add constraint planted exclude (account with =, texts with =)",
         "reissue_case", set()),
        ("alter table outbox add constraint planted foreign key (account) references account", "outbox", {"planted"}),
        ("alter table reissue_case add constraint planted foreign key (phone) references account", "reissue_case",
         {"planted"}),
        ("alter table wording add code text, add constraint planted foreign key (code) references account", "wording",
         {"planted"}),
        ("alter table reissue_case drop constraint reissue_case_pkey, alter account drop not null", "reissue_case",
         {"account_may_be_null_or_missing"}),
        ("create function f() returns trigger language plpgsql as 'begin return new; end';"
         "create trigger planted after insert on account execute function f()", "account", {"planted"}),
        ("create rule planted as on delete to reissue_case do nothing", "reissue_case", {"planted"}),
        ("alter table account add unique (code, phone)", "account", set()),
        ("alter table reissue_case add constraint planted foreign key (account) references account", "reissue_case",
         set()),
    ],
)  # fmt: skip
def test_what_would_stand_in_the_way_is_found(db, decisions, ddl, table, named):
    before = in_the_way(read_catalog(), decisions)
    with connection.cursor() as cursor:
        cursor.execute(ddl)
    after = in_the_way(read_catalog(), decisions)
    assert after.pop(table, set()) - before.pop(table, set()) == named
    assert after == before


def test_a_new_table_or_view_needs_a_decision(db, decisions):
    with connection.cursor() as cursor:
        cursor.execute("create table planted (id int); create view planted_too as select code from account")
    assert read_catalog().keys() - decisions.keys() == {"planted", "planted_too"}
