"""``poolwatch bench``: what pooling saves, and what poolwatch costs, on your database.

``ways``      how an operation gets its connection
``workloads`` what is done with it
``latency``   a proxy that adds a network's delay
``measuring`` runs each workload in each way, interleaved
``report``    the table and the JSON document
``command``   the command
"""
