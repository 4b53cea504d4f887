"""FastAPI's tutorial on SQL databases: a session a request, plain ``def`` endpoints."""

from __future__ import annotations

import os
import threading
from typing import Annotated

from fastapi import Depends, FastAPI
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session, sessionmaker

import poolwatch

engine = create_engine(os.environ["SHOP_DATABASE"])
poolwatch.instrument(engine)
SessionLocal = sessionmaker(engine, autoflush=False)
app = FastAPI()


@app.middleware("http")
async def label(request, call_next):
    with poolwatch.label(endpoint=request.url.path):
        return await call_next(request)


def get_db():
    db = SessionLocal()
    try:
        yield db
    finally:
        db.close()


def get_connection():
    with engine.connect() as connection:  # connection
        connection.execute(text("SELECT 1"))
        yield connection


def get_db_unclosed():
    db = SessionLocal()
    yield db


kept = []


def get_db_kept():
    db = SessionLocal()
    kept.append(db)
    yield db


Db = Annotated[Session, Depends(get_db)]
gate = threading.Event()


@app.get("/")
def index(db: Db):
    return db.scalar(text("SELECT 'fine'"))


@app.get("/orders")
def orders(db: Db):
    db.execute(text("SELECT 1"))  # orders
    gate.wait(60)


@app.get("/stock")
def stock(connection: Annotated[object, Depends(get_connection)]):
    gate.wait(60)  # stock


@app.get("/unclosed")
def unclosed(db: Annotated[Session, Depends(get_db_unclosed)]):
    return db.scalar(text("SELECT 1"))  # unclosed


@app.get("/kept")
def kept_open(db: Annotated[Session, Depends(get_db_kept)]):
    return db.scalar(text("SELECT 1"))  # kept


@app.get("/open")
async def open_gate():
    gate.set()


poolwatch.instrument(engine, long_after=1)  # so long the tests do wait
