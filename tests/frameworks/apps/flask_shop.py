"""Flask-SQLAlchemy as its quick start has it: one scoped session, one model."""

from __future__ import annotations

import os
import threading

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import poolwatch


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


db = SQLAlchemy(model_class=Base)
app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["SHOP_DATABASE"]
db.init_app(app)

with app.app_context():
    poolwatch.instrument(db.engine)


def label(wsgi):
    def labelled(environ, start_response):
        with poolwatch.label(endpoint=environ["PATH_INFO"]):
            return wsgi(environ, start_response)

    return labelled


app.wsgi_app = label(app.wsgi_app)

gate = threading.Event()
kept = []


@app.get("/")
def index():
    return str(db.session.scalar(select(1)))


@app.get("/orders")
def orders():
    db.session.execute(select(1))  # orders
    gate.wait(60)
    return "done"


@app.get("/raw")
def raw():
    connection = db.engine.connect()  # raw
    kept.append(connection)
    return "kept"


@app.get("/session")
def own_session():
    session = Session(db.engine)  # not db.session: nobody will remove it
    kept.append(session)
    return str(session.scalar(select(1)))  # session


@app.get("/thread")
def in_a_thread():
    thread = threading.Thread(target=mail, name="mail")
    thread.start()
    thread.join()
    return "sent"


def mail():
    with app.app_context():
        kept.append(db.engine.connect())  # mail


@app.get("/open")
def open_gate():
    gate.set()
    return "open"


with app.app_context():
    poolwatch.instrument(db.engine, long_after=1)  # so long the tests do wait
