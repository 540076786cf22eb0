"""The policy of docs/migrations.md, held against the SQL of every migration after the first one."""

import re
from itertools import chain

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader

# What waits for nobody who reads or writes, and nobody waits for: it may take its time.
BESIDE = re.compile(
    r"\b(create|drop) (unique )?index concurrently\b|\bvalidate constraint\b|\breindex .*concurrently\b"
)
VOLATILE = re.compile(
    r"\bdefault\b[^,]*\b(random|gen_random_uuid|uuidv\d|clock_timestamp|timeofday|nextval)\b"
)
ADDED = re.compile(r'\badd column "?\w+"? (.*)')


def faults(statements, *, atomic, contract=False):
    """What old code, or a service under load, would suffer from these statements of one migration."""
    made = set()
    for statement in statements:
        sql = " ".join(statement.lower().split())
        if sql.startswith("--") or not sql or sql in ("begin;", "commit;"):
            continue
        if create := re.match(r'create table (?:if not exists )?"?(\w+)"?', sql):
            made.add(create[1])
            continue
        table = re.search(r'\b(?:table(?: only)?(?: if exists)?|on) "?(\w+)"?', sql)
        if table and table[1] in made:
            continue  # nobody uses it yet
        if atomic and BESIDE.search(sql):
            yield "what is done beside the service stands in a migration that is not atomic"
        if not atomic and not BESIDE.search(sql) and not re.search(r"\bif (not )?exists\b", sql):
            yield "a migration that is not atomic can be run again: if exists, if not exists"
        if re.search(r"\b(create|drop) (unique )?index (?!concurrently)", sql):
            yield "an index is made and dropped concurrently"
        if re.search(r"\breindex\b(?!.*concurrently)", sql):
            yield "an index is rebuilt concurrently"
        if re.search(r"\brename\b", sql):
            yield "nothing is renamed: add the new, write both, drop the old"
        if re.search(r"\bdrop (column|table)\b", sql) and not contract:
            yield "only a migration named contract takes something away"
        if re.search(r"\balter column \"?\w+\"? type\b", sql):
            yield "no column changes its type: the table would be written anew"
        if re.search(r"\bset not null\b", sql):
            yield "no column that exists becomes NOT NULL: add a CHECK NOT VALID, and validate it later"
        if re.search(r"\badd constraint\b", sql) and not re.search(r"\bnot valid\b|\busing index\b", sql):
            yield "a constraint of a table in use is added NOT VALID, or from an index built before"
        if re.search(r"\bdrop default\b", sql):
            yield "a default stays in the database, where old code needs it: db_default instead of default"
        for column in ADDED.findall(sql):
            if "not null" in column and "default" not in column:
                yield "a new column has a default or may be NULL: old code does not fill it"
            if VOLATILE.search(column) or re.search(r"\b(big|small)?serial\b|\bidentity\b", column):
                yield "a default that differs from row to row writes the whole table anew"


def later_migrations():
    loader = MigrationLoader(None)
    return sorted(
        key for key in loader.disk_migrations if key[0] == "store" and not key[1].startswith("0001")
    )


def test_together_they_make_what_the_models_say(db):
    call_command("makemigrations", "store", check=True, dry_run=True, verbosity=0)  # exits with 1 if not


@pytest.mark.parametrize("key", later_migrations(), ids=lambda key: key[1])
def test_every_migration_obeys(db, key):
    executor = MigrationExecutor(connection)
    migration = executor.loader.get_migration(*key)
    statements = executor.loader.collect_sql([(migration, False)])
    atomic = migration.atomic
    assert set(faults(statements, atomic=atomic, contract="contract" in key[1])) == set()


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ('CREATE INDEX "i" ON "inbox" ("text");', "concurrently"),
        ('CREATE UNIQUE INDEX CONCURRENTLY "i" ON "inbox" ("text");', "not atomic"),
        ('ALTER TABLE "inbox" VALIDATE CONSTRAINT "c";', "not atomic"),
        ('ALTER TABLE "inbox" RENAME COLUMN "text" TO "words";', "renamed"),
        ('ALTER TABLE "inbox" DROP COLUMN "text";', "contract"),
        ("DROP TABLE inbox;", "contract"),
        ('ALTER TABLE "inbox" ALTER COLUMN "coding" TYPE bigint;', "type"),
        ('ALTER TABLE "inbox" ALTER COLUMN "case_id" SET NOT NULL;', "NOT NULL"),
        ('ALTER TABLE "inbox" ADD CONSTRAINT "c" CHECK ("total" > 0);', "NOT VALID"),
        ('ALTER TABLE "inbox" ADD COLUMN "n" integer NOT NULL;', "old code"),
        ('ALTER TABLE "inbox" ALTER COLUMN "n" DROP DEFAULT;', "db_default"),
        ('ALTER TABLE "inbox" ADD COLUMN "n" uuid DEFAULT gen_random_uuid() NOT NULL;', "row to row"),
        ('ALTER TABLE "inbox" ADD COLUMN "n" bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY;', "row to row"),
    ],
)  # fmt: skip
def test_what_would_hurt_is_found(sql, says):
    assert says in " ".join(faults([sql], atomic=True))


def test_half_a_migration_must_be_able_to_run_again():
    assert list(faults(['ALTER TABLE "inbox" ADD COLUMN "n" integer NULL;'], atomic=False))


def test_what_would_not_hurt_is_let_through():
    expand = [
        "BEGIN;",
        'CREATE TABLE "news" ("id" bigint NOT NULL PRIMARY KEY);',
        'CREATE INDEX "news_id" ON "news" ("id");',
        'ALTER TABLE "inbox" ADD COLUMN "n" integer NULL;',
        'ALTER TABLE "inbox" ADD COLUMN "at" timestamptz DEFAULT now() NOT NULL;',
        'ALTER TABLE "inbox" ADD CONSTRAINT "c" CHECK ("n" > 0) NOT VALID;',
    ]
    beside = [
        'alter table "inbox" add column if not exists "m" integer',
        'CREATE INDEX CONCURRENTLY "i" ON "inbox" ("n");',
        'ALTER TABLE "inbox" VALIDATE CONSTRAINT "c";',
    ]
    drop = ['ALTER TABLE "inbox" DROP COLUMN "n" CASCADE;']
    assert (
        list(
            chain(
                faults(expand, atomic=True),
                faults(beside, atomic=False),
                faults(drop, atomic=True, contract=True),
            )
        )
        == []
    )
