"""Django's database connections: one per database alias and thread."""

from poolwatch.runtime.libraries import LibraryInfo, PoolOptions

KIND = "django"
"""The kind of the pool that stands for the connections of one alias."""

LIBRARY = LibraryInfo(
    packages=(),  # Django is more than its database connections
    module="django.db",
    adapter="django.aliases:DjangoAliases",
    instrumentable="a Django database connection",
    options={
        KIND: PoolOptions(
            made_by='DATABASES["default"]["OPTIONS"]["pool"] = dict',
            size="max_size",
            keep_options=None,
            closing_rule="a connection is closed at the end of each request",
            test=None,
        )
    },
)
