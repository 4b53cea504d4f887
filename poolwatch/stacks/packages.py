"""Packages that are never the application itself.

They are between an application and its connection pool, or around the application.
Packages that are applications themselves are left out (Airflow, MLflow, JupyterHub,
Prefect, Dagster, Superset).
"""

from __future__ import annotations

from poolwatch.runtime.libraries import by_package

# fmt: off
_AROUND_DATABASES = frozenset({
    "sqlmodel", "flask_sqlalchemy", "flask_sqlalchemy_lite",
    "fastapi_async_sqlalchemy", "zope_sqlalchemy", "advanced_alchemy",
    "alembic", "flask_migrate", "geoalchemy2", "sqlalchemy_utils", "pandas", "ormar",
    "piccolo", "psycogreen", "aiopg", "greenlet", "gevent", "eventlet",
})
"""ORMs, extensions of SQLAlchemy, and greenlet libraries."""

DATABASE = _AROUND_DATABASES | by_package().keys()
"""These packages, and the pool libraries and drivers."""

RUNNERS = frozenset({
    "coverage", "debugpy", "_pydevd_bundle", "pydevd", "pex", "_bootstrap", "execnet",
    "poolwatch", "scalene", "viztracer", "memray", "pyinstrument", "kernprof",
})
"""Tools that run another program in their own process."""

WEB = frozenset({
    # servers
    "uvicorn", "hypercorn", "gunicorn", "waitress", "uwsgi", "cheroot", "cherrypy",
    "daphne", "granian", "bjoern", "meinheld", "mod_wsgi", "a2wsgi", "asgiref",
    "mangum", "awslambdaric", "functions_framework", "azure_functions_worker",
    "watchfiles", "hupper", "engineio", "socketio", "grpc", "grpclib",
    # web frameworks and their middleware
    "fastapi", "starlette", "flask", "werkzeug", "django", "rest_framework", "ninja",
    "channels", "aiohttp", "sanic", "quart", "litestar", "falcon", "bottle", "tornado",
    "pyramid", "webob", "pecan", "blacksheep", "robyn", "connexion",
    "apiflask", "flask_login", "flask_restful", "flask_restx", "flask_smorest",
    "flask_appbuilder", "flask_admin", "flask_caching", "flask_cors", "flask_limiter",
    "flask_security", "flask_session", "flask_socketio", "flask_executor",
    "flask_apscheduler", "flask_wtf", "flask_httpauth", "flask_jwt_extended",
    "flask_babel", "flask_script", "flask_marshmallow", "flask_openapi3",
    "fastapi_utils", "starlette_context", "asgi_correlation_id",
    "strawberry", "graphene", "graphene_sqlalchemy", "graphql", "graphql_server",
    "flask_graphql", "ariadne", "tartiflette", "streamlit", "dash",
    "gradio", "nicegui", "bokeh", "traitlets", "slack_bolt",
})
"""Servers and web frameworks: they refer to all requests and to their application."""

_TASKS = frozenset({
    "celery", "kombu", "billiard", "amqp", "vine", "rq", "rq_scheduler", "dramatiq",
    "huey", "arq", "procrastinate", "taskiq", "saq", "apscheduler", "faust", "nameko",
    "django_celery_beat", "django_rq", "django_q", "luigi", "joblib", "dask",
    "distributed", "ray", "pyspark", "multiprocess", "pebble", "aiojobs", "janus",
    "pika", "aio_pika", "aiokafka", "confluent_kafka", "kafka", "paho", "watchdog",
})
"""Tasks and schedules."""

SERVING = WEB | _TASKS | {"anyio"}
"""They call the application for one request or task at a time. anyio has the threads of
synchronous endpoints."""

_FRAMEWORKS = SERVING | frozenset({
    # OpenStack libraries
    "oslo_config", "oslo_concurrency", "oslo_db", "oslo_messaging", "oslo_middleware",
    "oslo_service", "oslo_utils", "oslo_context", "oslo_log", "cotyledon", "futurist",
    "stevedore", "cliff", "debtcollector", "osprofiler",
    # other event loops
    "trio", "trio_asyncio", "sniffio", "uvloop", "curio", "twisted", "zope",
    "nest_asyncio", "asyncer", "aiomisc", "asyncstdlib", "async_timeout",
    # command lines and prompts
    "click", "click_plugins", "click_repl", "rich_click", "typer", "fire", "absl",
    "docopt", "cyclopts", "cleo", "IPython", "ipykernel", "ipykernel_launcher",
    "jupyter_client", "jupyter_core", "nbclient", "prompt_toolkit",
    # tests
    "pytest", "_pytest", "pluggy", "pytest_asyncio", "pytest_django", "pytest_flask",
    "pytest_postgresql", "pytest_benchmark", "xdist", "__channelexec__", "hypothesis",
    "behave", "nose2", "locust",
    # monitoring, and decorators that wrap functions
    "databases", "opentelemetry", "ddtrace", "sentry_sdk", "newrelic", "elasticapm",
    "scout_apm", "logfire", "prometheus_client", "prometheus_flask_exporter",
    "line_profiler", "memory_profiler", "statsd", "loguru", "wrapt", "decorator",
    "tenacity", "backoff", "retrying",
    "stamina", "cachetools", "methodtools", "aiocache", "dogpile", "beartype",
    "typeguard", "deprecated", "pydantic", "pydantic_core", "dependency_injector",
    "dishka", "pkg_resources", "setuptools",
})

KNOWN = DATABASE | RUNNERS | _FRAMEWORKS
# fmt: on
