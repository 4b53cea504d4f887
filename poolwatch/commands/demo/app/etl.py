"""The document pipeline: threads split documents into chunks for the search index."""

import logging
import queue
import threading
import time

from sqlalchemy import Column, Integer, MetaData, Table, Text, insert, text

from poolwatch.commands.demo.app import db, schema

WORKERS = 6
BATCH = 4
CHUNK_WORDS = 40
PAUSE = 4.0

chunks = Table(
    "chunks",
    MetaData(),
    Column("document_id", Integer, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("body", Text),
)
Ids = tuple[int, ...]

log = logging.getLogger(__name__)


def start() -> None:
    todo: queue.Queue[Ids] = queue.Queue()
    for number in range(WORKERS):
        threading.Thread(
            target=_work, args=(todo,), name=f"etl-{number + 1}", daemon=True
        ).start()
    threading.Thread(target=_feed, args=(todo,), name="etl-feed", daemon=True).start()


def _feed(todo: "queue.Queue[Ids]") -> None:
    """Queue all documents, again and again."""
    while True:
        for first in range(0, schema.DOCUMENTS, BATCH):
            todo.put(tuple(range(first, first + BATCH)))
        todo.join()
        log.info("%d documents are in the index", schema.DOCUMENTS)
        time.sleep(PAUSE)


def _work(todo: "queue.Queue[Ids]") -> None:
    while True:
        ids = todo.get()
        try:
            load(transform(extract(ids)))
        except Exception:
            log.exception("documents %s", ids)
        finally:
            todo.task_done()


def extract(ids: Ids) -> list[tuple[int, str]]:
    with db.search.connect() as conn:
        rows = conn.execute(
            text("SELECT id, body FROM documents WHERE id = ANY(:ids)"),
            {"ids": list(ids)},
        )
        return [(row.id, row.body) for row in rows]


def transform(documents: list[tuple[int, str]]) -> list[dict[str, object]]:
    """Split each document into pieces of a few dozen words."""
    rows: list[dict[str, object]] = [
        {"document_id": document_id, "position": position, "body": piece}
        for document_id, body in documents
        for position, piece in enumerate(_pieces(body.split()))
    ]
    time.sleep(0.09)  # the embedding of a batch
    return rows


def _pieces(words: list[str]) -> list[str]:
    return [
        " ".join(words[first : first + CHUNK_WORDS])
        for first in range(0, len(words), CHUNK_WORDS)
    ]


def load(rows: list[dict[str, object]]) -> None:
    ids = sorted({row["document_id"] for row in rows}, key=str)
    with db.search.begin() as conn:
        conn.execute(
            text("DELETE FROM chunks WHERE document_id = ANY(:ids)"), {"ids": ids}
        )
        conn.execute(insert(chunks), rows)
        conn.execute(text("SELECT refresh_index(:first)"), {"first": ids[0]})
