"""FastAPI doing slow but honest work with its connections, in every way it knows."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

import poolwatch

engine = create_engine(os.environ["SHOP_DATABASE"], pool_size=20)
async_engine = create_async_engine(os.environ["SHOP_DATABASE"], pool_size=20)
poolwatch.instrument(long_after=1)
SessionLocal = sessionmaker(engine)
AsyncSessionLocal = async_sessionmaker(async_engine)
gate = asyncio.Event()
open_to_threads = threading.Event()


class Label:
    """Pure ASGI, for whatever is served."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        with poolwatch.label(endpoint=scope.get("path", "lifespan")):
            await self.app(scope, receive, send)


@asynccontextmanager
async def lifespan(app):
    with poolwatch.long_hold("listens as long as the application lives"):
        connection = await async_engine.connect()
    app.state.connection = connection
    yield
    await connection.close()


app = FastAPI(lifespan=lifespan)
app.add_middleware(Label)


def get_db():
    with SessionLocal() as db:
        db.execute(text("SELECT 1"))
        yield db


async def get_async_db():
    async with AsyncSessionLocal() as db:
        await db.execute(text("SELECT 1"))
        yield db


Db = Annotated[Session, Depends(get_db)]
AsyncDb = Annotated[AsyncSession, Depends(get_async_db)]


@app.get("/")
def index():
    return "fine"


@app.get("/lines")
def lines(db: Db):
    def produce():
        yield "first\n"
        open_to_threads.wait(60)
        yield f"{db.scalar(text('SELECT 2'))}\n"

    return StreamingResponse(produce())


@app.get("/async-lines")
async def async_lines(db: AsyncDb):
    async def produce():
        yield "first\n"
        await gate.wait()
        yield f"{await db.scalar(text('SELECT 2'))}\n"

    return StreamingResponse(produce())


@app.get("/mail")
def mail(background: BackgroundTasks):
    background.add_task(send_mail)
    return "will be sent"


def send_mail():
    with SessionLocal() as db:
        db.execute(text("SELECT 1"))
        open_to_threads.wait(60)


@app.get("/mixed")
async def mixed(db: Db):
    """The dependency runs in a thread, its user in another."""
    return await run_in_threadpool(report, db)


def report(db):
    open_to_threads.wait(60)
    return db.scalar(text("SELECT 2"))


@app.get("/idle")
async def idle(db: Db):
    """The dependency's thread is free for others, the endpoint is a task."""
    await gate.wait()


@app.get("/gather")
async def gather():
    async def one():
        async with AsyncSessionLocal() as db:
            await db.execute(text("SELECT 1"))
            await gate.wait()

    await asyncio.gather(one(), one())


@app.get("/open")
async def open_gate():
    gate.set()
    open_to_threads.set()
