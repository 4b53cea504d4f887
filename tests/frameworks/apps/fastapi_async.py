"""FastAPI with ``async def`` endpoints on an AsyncSession a request."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

import poolwatch
from poolwatch.ledger import labels

engine = create_async_engine(os.environ["SHOP_DATABASE"])
poolwatch.instrument(engine)
SessionLocal = async_sessionmaker(engine, expire_on_commit=False)


async def label(request: Request):
    with poolwatch.label(endpoint=request.scope["route"].path):
        yield


app = FastAPI(dependencies=[Depends(label)])


async def get_db():
    async with SessionLocal() as db:
        yield db


async def get_db_unclosed():
    yield SessionLocal()


kept = []


async def get_db_kept():
    kept.append(SessionLocal())
    yield kept[-1]


Db = Annotated[AsyncSession, Depends(get_db)]
gate = asyncio.Event()


@app.get("/")
async def index(db: Db):
    return await db.scalar(text("SELECT 'fine'"))


@app.get("/orders/{number}")
async def orders(number: int, db: Db):
    await db.execute(text("SELECT 1"))  # orders
    await gate.wait()


@app.get("/report")
def report():
    return labels.current_context.get().labels


@app.get("/unclosed")
async def unclosed(db: Annotated[AsyncSession, Depends(get_db_unclosed)]):
    return await db.scalar(text("SELECT 1"))  # unclosed


@app.get("/kept")
async def kept_open(db: Annotated[AsyncSession, Depends(get_db_kept)]):
    return await db.scalar(text("SELECT 1"))  # kept


@app.get("/open")
async def open_gate():
    gate.set()


poolwatch.instrument(engine, long_after=1)  # so long the tests do wait
