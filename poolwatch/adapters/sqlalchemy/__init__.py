"""SQLAlchemy's engines and pools."""

from poolwatch.runtime.libraries import LibraryInfo, PoolOptions

LIBRARY = LibraryInfo(
    packages=("sqlalchemy",),
    module="sqlalchemy",
    adapter="sqlalchemy.engines:Engines",
    instrumentable="a SQLAlchemy Engine, AsyncEngine or Pool",
    options={
        "*": PoolOptions(
            made_by="create_engine",
            size="pool_size",
            keep_options="pool_size=<the peak>, max_overflow=0",
            closing_rule="overflow connections are closed when returned, and "
            "opened again",
            test="pool_pre_ping=True",
        )
    },
    searched_modules=(
        "sqlalchemy.orm.session",
        "sqlalchemy.orm.scoping",
        "sqlalchemy.orm.query",
        "sqlalchemy.engine",
        "sqlalchemy.ext.asyncio",
        "sqlalchemy.util",
        "sqlalchemy.pool.base",
        "sqlalchemy.cyextension",
    ),
    not_searched=frozenset(
        {"Engine", "OptionEngine", "AsyncEngine", "Pool", "_ConnectionRecord", "URL"}
    ),
)
