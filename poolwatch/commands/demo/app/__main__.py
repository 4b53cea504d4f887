"""Run the shop until its standard input ends."""

import logging
import sys

import poolwatch
from poolwatch.commands.demo.app import db, etl, newsletter, schema, traffic


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    poolwatch.instrument(db.orders, name="orders", long_after=2.0)
    poolwatch.instrument(db.search, name="search", long_after=2.0)
    schema.create()
    newsletter.start()
    etl.start()
    traffic.start()
    sys.stdin.buffer.read()  # ends when the demo has ended, even if it was killed


if __name__ == "__main__":
    main()
