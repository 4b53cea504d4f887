from faulty import Fault

SERVERS: dict[str, Fault] = {}
